"""Writes a world to disk: a jsonl file for each source, and the config of a model that fits it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_cpt.microworld.world import World

MODEL_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "intermediate_size": 256,
    "max_position_embeddings": 1024,
    "rope_theta": 10000.0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": True,
    # One number for all matrices. With the usual 0.02 pretraining (3600 steps) ends at a loss of 0.91, with 0.06
    # as well; 1/sqrt(96), which keeps the scale through the linear layers, learns sooner but ends at 0.95.
    "initializer_range": 0.02,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

# Shapes of about the same cost or of another size; what they leave out is as in MODEL_CONFIG.
SHAPES: dict[str, dict[str, Any]] = {
    "dense": {},  # 0.48 million parameters at 1536 tokens
    "small": {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
              "intermediate_size": 176},
    "large": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4,
              "intermediate_size": 352},
    # Four experts, of which a token is sent to two: as many active parameters as the dense one has.
    "moe": {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "intermediate_size": 128,
            "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    "encoder_decoder": {
        "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 96, "d_kv": 32, "d_ff": 256,
        "num_layers": 2, "num_decoder_layers": 2, "num_heads": 3, "feed_forward_proj": "gated-gelu",
        "dropout_rate": 0.0, "decoder_start_token_id": 0, "pad_token_id": 0},
}


def write_corpora(world: World, directory: str | Path, held_out_share: float = 0.0) -> dict[str, Path]:
    """Write one ``<source>.jsonl`` for each source, and ``qa_held_out.jsonl``; a line is ``{"text": ...}``.

    Args:
        world: What to write.
        directory: Made if missing; files of the same names are replaced.
        held_out_share: In [0, 1). The last documents of each source but qa go to ``<source>_held_out.jsonl``
            for validation losses, and not into ``<source>.jsonl``. The pre-registered runs hold out 0.03.

    Returns:
        File name without ``.jsonl`` to path.

    Raises:
        ValueError: ``held_out_share`` is out of range.
    """
    if not 0 <= held_out_share < 1:
        raise ValueError(
            f"held_out_share={held_out_share}: it lies in [0, 1). Give the share of documents to keep back."
        )
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files = {"qa": world.documents["qa"], "qa_held_out": world.held_out_qa}
    for source, documents in world.documents.items():
        if source == "qa":
            continue
        kept = int(len(documents) * (1 - held_out_share))
        files[source] = documents[:kept]
        if held_out_share:
            files[f"{source}_held_out"] = documents[kept:]
    return {name: write_jsonl(folder / f"{name}.jsonl", documents) for name, documents in files.items()}


def write_jsonl(path: Path, documents: Iterable[str]) -> Path:
    """Write each document as a line ``{"text": ...}`` and return ``path``."""
    lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents)
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


def write_model_config(directory: str | Path, vocab_size: int, shape: str = "dense") -> Path:
    """Write the ``config.json`` of a small model.

    Args:
        directory: Made if missing. `transformers.AutoConfig.from_pretrained` reads it.
        vocab_size: Tokens of the tokenizer.
        shape: One of `SHAPES`; dense is a Llama of 0.48 million parameters.

    Returns:
        The path of ``config.json``.

    Raises:
        ValueError: ``vocab_size`` is below 1.
    """
    if vocab_size < 1:
        raise ValueError(f"vocab_size={vocab_size}: a model needs at least 1 token. Give `len(tokenizer)`.")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    config = {**MODEL_CONFIG, **SHAPES[shape], "vocab_size": vocab_size}
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return path
