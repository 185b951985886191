"""Tokenizers as preparation uses them: what they are, and text in, token ids out."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from lit_cpt.manifest import TokenizerFacts

DECIDES_TOKENS = ("normalizer", "pre_tokenizer", "model", "added_tokens")
TOKENIZER_FILES = ("*token*.json", "vocab*", "merges.txt", "*.model")


def load_tokenizer(name: str) -> Any:
    """The tokenizer in folder ``name`` or of that name on the hub.

    Raises:
        ValueError: It cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, ImportError and more
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"cannot load tokenizer {name!r}: {reason} Give a folder that `save_pretrained` wrote, or a hub name."
        ) from None


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of what decides a tokenizer's tokens: equal fingerprints give equal tokens for every text.

    Special tokens put around a text, padding, truncation and decoding are left out.

    Args:
        tokenizer: One of transformers, or a bare ``tokenizers.Tokenizer``.

    Returns:
        ``sha256:`` and 64 hex digits.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        decisive: Any = {name: content.get(name) for name in DECIDES_TOKENS}
    else:
        decisive = [type(tokenizer).__name__, tokenizer.get_vocab(), sorted(tokenizer.get_added_vocab())]
    canonical = json.dumps(decisive, sort_keys=True, ensure_ascii=True)
    return "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


def tokenizer_facts(tokenizer: Any, name: str, bos: bool = False) -> TokenizerFacts:
    """What the manifest says about ``tokenizer``.

    Raises:
        ValueError: It has no EOS token, or no BOS token where ``bos`` asks for one.
    """
    for kind, wanted in (("eos", True), ("bos", bos)):
        if wanted and getattr(tokenizer, f"{kind}_token_id") is None:
            raise ValueError(
                f"tokenizer {name!r} has no {kind.upper()} token, which {'ends' if kind == 'eos' else 'begins'} every "
                f"document. Set one: `AutoTokenizer.from_pretrained({name!r}, {kind}_token='...')`, with a token of "
                "its vocabulary, then `.save_pretrained(folder)`, and give that folder."
            )
    return TokenizerFacts(
        name=name,
        fingerprint=tokenizer_fingerprint(tokenizer),
        vocabulary=max(tokenizer.get_vocab().values()) + 1,
        eos_token=str(tokenizer.eos_token),
        eos_token_id=int(tokenizer.eos_token_id),
        bos_token_id=int(tokenizer.bos_token_id) if bos else None,
    )


def dtype_of(vocabulary: int) -> str:
    """Smallest type litdata and torch both read that holds every id below ``vocabulary``.

    ``torch.uint16`` stacks, compares, slices and converts, but has no embedding lookup: call ``.long()``.

    >>> dtype_of(50257), dtype_of(128256)
    ('uint16', 'int32')
    """
    return "uint16" if vocabulary <= 65_535 else "int32"


class Encoder:
    """Turns texts into token ids; documents get their EOS (and BOS) token.

    Text that spells a special token becomes that token, as everywhere in transformers.

    Args:
        tokenizer: The tokenizer, of transformers; its Rust backend is used where it has one.
        facts: Its ids.
    """

    def __init__(self, tokenizer: Any, facts: TokenizerFacts) -> None:
        self.tokenizer = tokenizer
        self.eos = [facts.eos_token_id]
        self.bos = [] if facts.bos_token_id is None else [facts.bos_token_id]
        self.backend = getattr(tokenizer, "backend_tokenizer", None)
        if self.backend is not None:
            self.backend.no_truncation()
            self.backend.no_padding()
        else:
            tokenizer.model_max_length = 1 << 60  # silences a warning per long document

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, EOS included."""
        if self.backend is not None:
            # Without offsets, which preparation has no use for: a quarter faster.
            encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
        else:
            ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]
        return [self.bos + document + self.eos for document in ids]


def files_digest(name: str) -> str | None:
    """Hash of the tokenizer files in folder ``name``; None for a hub name.

    It lets a second run see that nothing changed without loading the tokenizer.

    Raises:
        FileNotFoundError: ``name`` is a path that does not exist.
    """
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1 or os.path.exists(name):
            raise FileNotFoundError(f"tokenizer {name!r} is no folder; give one, or a hub name such as 'gpt2'.")
        return None
    digest = hashlib.sha256()
    for path in sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()}):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
