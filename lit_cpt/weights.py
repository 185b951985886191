"""Models, and weights and optimizer state that they start with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from textwrap import shorten
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_cpt.manifest import TokenizerFacts

Moments = dict[str, dict[str, torch.Tensor]]
PREFIX = "model."  # the attribute under which the LightningModule holds the HF model


def build_model(pretrained: str | None, architecture: str | dict[str, Any] | None,
                dtype: torch.dtype | str = torch.float32, attention: str | None = None) -> nn.Module:
    """A causal or an encoder–decoder language model: from a pretrained folder or hub name, or newly initialised.

    Args:
        pretrained: Folder or hub name with weights.
        architecture: Folder, hub name or values of a config (with ``model_type``) for random weights.
        dtype: Of its weights. To train, they are fp32: a master copy below it would lose updates at learning rates of
            1e-5, and precision is the Trainer's matter.
        attention: transformers' name of how attention is computed (``attn_implementation``); its choice if None.

    Raises:
        ValueError: Not exactly one of the two, it cannot be read, or not with this attention.
    """
    with readable(pretrained, architecture, attention):
        config, chosen = config_of(pretrained if architecture is None else architecture), attention_setting(attention)
        kind = kind_of(config)
        model: nn.Module = (kind.from_pretrained(pretrained, dtype=dtype, **chosen) if pretrained is not None else
                            kind.from_config(config, dtype=dtype, **chosen))
    return model


@contextmanager
def readable(pretrained: str | None, architecture: str | dict[str, Any] | None,
             attention: str | None = None) -> Iterator[None]:
    """Whatever cannot be read of a model inside this is told in one message.

    Raises:
        ValueError: It cannot be read, not with this attention, or not exactly one of the first two is given.
    """
    from safetensors import SafetensorError

    if (pretrained is None) == (architecture is None):
        raise ValueError(f"pretrained={pretrained!r} and architecture={in_short(architecture)}: give exactly one, a "
                         "model to continue or a config to initialise at random.")
    try:
        yield
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        if isinstance(error, RuntimeError) and "ignore_mismatched_sizes" not in str(error):
            raise  # an ImportError is of flash that is not installed
        if isinstance(error, RuntimeError):
            raise ValueError(f"pretrained={pretrained!r}: its weights have other shapes than its config.json tells, as "
                             "the table above shows. Give the folder as `save_pretrained` wrote it.") from error
        given = f"pretrained={pretrained!r}" if pretrained else f"architecture={in_short(architecture)}"
        reason = shorten(str(error).strip().splitlines()[0], 300, placeholder=" ...").rstrip(".") + "."
        if attention is not None and "attention" in reason.lower():
            raise ValueError(f"attention={attention!r} cannot be had for {given}: {reason} Leave it out for "
                             "transformers' own choice.") from error
        raise ValueError(f"{given} cannot be read: {reason} Give a folder with config.json (and weights), as "
                         "`save_pretrained` writes it, or the name of a hub model.") from error


def check_vocabulary(model: Any, facts: TokenizerFacts | Any) -> None:
    """Refuse a model with no room for the tokens of its data, which on a GPU would be a fault without a name.

    A tokenizer may know a few tokens more than the model was given rows for: a hundredth is let pass.

    Args:
        model: Whose input embedding is looked at.
        facts: What the data were tokenised with; another object tells nothing.

    Raises:
        ValueError: Its embedding is too short.
    """
    rows = getattr(model.get_input_embeddings(), "num_embeddings", None)
    if isinstance(facts, TokenizerFacts) and rows is not None and (
            rows <= facts.eos_token_id or rows < 0.99 * facts.vocabulary):
        raise ValueError(f"the model has {rows:,} tokens, but the sources were tokenised with {facts.name!r}, which "
                         f"has {facts.vocabulary:,}. Prepare them with the model's tokenizer, or take an architecture "
                         f"with vocab_size={facts.vocabulary} or more.")


def check_same_model(module: nn.Module, saved: Mapping[str, Any]) -> None:
    """Refuse the weights of a checkpoint, by name, if they are of another model.

    Args:
        module: That is to take them.
        saved: None, where ranks read their own parts.

    Raises:
        ValueError: A name or a shape differs.
    """
    mine = module.state_dict()
    for name in sorted(mine.keys() | saved.keys()) if saved else ():
        have, had = (tuple(getattr(one[name], "shape", ())) if name in one else "nothing" for one in (mine, saved))
        if have != had:
            raise ValueError(f"the checkpoint is of another model: of {name} it holds {had}, this model {have}. Resume "
                             "with the model of the run's config.yaml, or name another --run.")


def in_short(architecture: str | dict[str, Any] | None) -> str:
    """A config as a message has room for it: of its values, the kind of model alone."""
    kind = architecture.get("model_type") if isinstance(architecture, dict) else None
    return repr(architecture) if kind is None else f"{{'model_type': {kind!r}, ...}}"


def attention_setting(attention: str | None) -> dict[str, str]:
    """The keyword by which transformers is told of a choice of attention; none leaves the choice to it."""
    return {} if attention is None else {"attn_implementation": attention}


def config_of(architecture: str | dict[str, Any] | None) -> Any:
    """The config that a folder, a hub name or plain values name."""
    from transformers import AutoConfig

    if isinstance(architecture, dict):
        values = dict(architecture)
        return AutoConfig.for_model(values.pop("model_type", None), **values)
    return AutoConfig.from_pretrained(str(architecture))


def kind_of(config: Any) -> Any:
    """The class of transformers that builds the language model of a config."""
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    return AutoModelForSeq2SeqLM if getattr(config, "is_encoder_decoder", False) else AutoModelForCausalLM


def give_generation_config(model: Any, source: str | dict[str, Any] | None) -> None:
    """Let ``model`` generate by default as ``source`` says: saved values, or a folder or hub name that has a file."""
    from transformers import GenerationConfig

    if isinstance(source, dict):
        model.generation_config = GenerationConfig.from_dict(source)
    elif source is not None:
        with suppress(OSError):  # a model need not have one
            model.generation_config = GenerationConfig.from_pretrained(source)


def is_distributed(path: str | Path) -> bool:
    """Whether ``path`` is a checkpoint that several ranks wrote (torch.distributed.checkpoint)."""
    return (Path(path) / ".metadata").is_file()


def load_weights(model: nn.Module, checkpoint: str | Path) -> None:
    """Give ``model`` the weights that a checkpoint of `ContinuedPretraining` holds, a file or a folder."""
    if is_distributed(checkpoint):
        weights = {f"state_dict.{PREFIX}{name}": value for name, value in model.state_dict().items()}
        dcp.load(weights, checkpoint_id=str(checkpoint))  # into the model's own tensors
        return
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    model.load_state_dict({name.removeprefix(PREFIX): value for name, value in saved.items()})


def origin_of(model: Any, place: str | dict[str, Any] | None) -> dict[str, Any]:
    """What tells how to build ``model`` anew, and whose tokenizer it has.

    Args:
        model: A model; one that is not of transformers tells nothing.
        place: The folder or hub name that it came from, or its config.
    """
    config, generation = (getattr(model, name, None) for name in ("config", "generation_config"))
    return {"architecture": config.to_dict() if config is not None else None,
            "generation": generation.to_dict() if generation is not None else None,
            "tokenizer": place if isinstance(place, str) else None}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's two groups, named: matrices decay, norms and biases (one dimension or none) do not."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if parameter.ndim > 1]
    vectors = [(name, parameter) for name, parameter in named if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def moments_file(path: str | Path) -> Path:
    """The file that holds the moments which ``path`` names, or tells what a folder of several ranks holds.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    path = Path(path)
    if is_distributed(path):
        return path / ".metadata"
    file = path / "optimizer.pt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"optimizer_state={str(path)!r}: no such file. Give a checkpoint (*.ckpt), an optimizer's saved state, or "
            "a folder with optimizer.pt; leave it out to start AdamW cold.")
    return file


def read_moments(path: str | Path, model: nn.Module) -> Moments:
    """AdamW's state by parameter name, from a checkpoint of ours or HF Trainer's ``optimizer.pt``.

    Args:
        path: A Lightning checkpoint, a file or a folder written by several ranks; an optimizer's saved
            ``state_dict``; or a folder holding ``optimizer.pt``.
        model: The model it belongs to; gives names to a file that has none.

    Returns:
        Parameter name -> ``step``, ``exp_avg``, ``exp_avg_sq``.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: It holds no AdamW state.
    """
    if is_distributed(path):
        return read_distributed_moments(path, model)
    file = moments_file(path)
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, UnpicklingError, EOFError) as error:
        raise ValueError(f"optimizer_state={str(path)!r} cannot be read: it ends too early or is no file of "
                         "torch.save. Copy it again, or leave it out to start AdamW cold.") from error
    saved = saved["optimizer_states"][0] if "optimizer_states" in saved else saved
    if not saved.get("state") or "exp_avg" not in next(iter(saved["state"].values())):
        raise ValueError(f"optimizer_state={str(path)!r} holds no AdamW state (exp_avg, exp_avg_sq).")
    order = [index for group in saved["param_groups"] for index in group["params"]]
    names = saved_names(saved["param_groups"]) or huggingface_order(model)
    if len(names) != len(order):
        raise ValueError(f"optimizer_state={str(path)!r} holds {len(order)} parameters, the model {len(names)}: "
                         "it is of another model.")
    return {name: saved["state"][index] for name, index in zip(names, order, strict=True)}


def read_distributed_moments(path: str | Path, model: nn.Module) -> Moments:
    """AdamW's state from a folder that several ranks wrote; each rank reads what it holds of a sharded ``model``.

    The folder is a checkpoint of ours, or what ``torch.distributed.checkpoint.save`` made of ``{"optimizer":
    get_optimizer_state_dict(...)}``, by any name or none.

    Raises:
        ValueError: It holds no AdamW state, or that of another model.
    """
    parameters = trained_parameters(model)
    keys, shapes = {}, {}
    for key, item in FileSystemReader(path).read_metadata().state_dict_metadata.items():
        match = re.fullmatch(r"((?:\w+\.)?state\.(.+))\.exp_avg", key)  # of Lightning, or of torch alone
        if match and isinstance(item, TensorStorageMetadata):
            name = match[2] if match[2] in parameters else match[2].removeprefix(PREFIX)
            keys[name], shapes[name] = match[1], item.size
    if not keys:
        raise ValueError(f"optimizer_state={str(path)!r} holds no AdamW state (exp_avg, exp_avg_sq).")
    check_shapes(model, shapes)
    moments = {name: {"exp_avg": torch.empty_like(parameter.detach()), "exp_avg_sq": torch.empty_like(
        parameter.detach()), "step": torch.zeros(())} for name, parameter in parameters.items()}
    dcp.load({f"{keys[name]}.{what}": value for name, one in moments.items() for what, value in one.items()},
             checkpoint_id=str(path))  # into these tensors
    return moments


def saved_names(groups: Iterable[dict[str, Any]]) -> list[str]:
    """Parameter names as torch saves them for an optimizer that was built with names; empty without."""
    return [name for group in groups for name in group.get("param_names", ())]


def huggingface_order(model: nn.Module) -> list[str]:
    """Parameter names in the order of HF Trainer's two groups: decayed, then not."""
    from transformers import Trainer

    decayed = set(Trainer.get_decay_parameter_names(None, model))  # type: ignore[arg-type]  # uses no self
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [name for name in names if name in decayed] + [name for name in names if name not in decayed]


def load_moments(model: nn.Module, optimizer: torch.optim.Optimizer, moments: Moments) -> None:
    """Give AdamW the moments of an earlier run; the new run's learning rate, betas and decay stay.

    Args:
        model: The model whose parameters ``optimizer`` trains.
        optimizer: AdamW before its first step.
        moments: As `read_moments` returns them.

    Raises:
        ValueError: A parameter without moments, moments without a parameter, or another shape.
    """
    check_shapes(model, {name: one["exp_avg"].shape for name, one in moments.items()})
    for name, parameter in trained_parameters(model).items():
        old = moments[name]
        # Cloned: the source must not go on counting steps with this optimizer.
        moment = {key: placed_like(parameter, old[key]) for key in ("exp_avg", "exp_avg_sq")}
        step = torch.tensor(float(old["step"]), device=parameter.device if parameter.is_cuda else "cpu")
        optimizer.state[parameter] = {"step": step, **moment}


def placed_like(parameter: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """A copy of ``value`` where ``parameter`` lies and in its dtype; of a whole tensor this rank's shard."""
    if isinstance(parameter, DTensor) and not isinstance(value, DTensor):
        local = value.to(parameter.device_mesh.device_type, parameter.dtype)
        shard = distribute_tensor(local, parameter.device_mesh, parameter.placements, src_data_rank=None)
        return shard.clone()
    return value.to(parameter.device, parameter.dtype, copy=True)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that an optimizer gets, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_shapes(model: nn.Module, shapes: Mapping[str, Sequence[int]]) -> None:
    """Refuse moments of another model, by the shape that each parameter's have.

    Raises:
        ValueError: A parameter without moments, moments without a parameter, or another shape.
    """
    parameters = trained_parameters(model)
    for said, names in (("has no moments for", parameters.keys() - shapes.keys()),
                        ("holds moments for unknown", shapes.keys() - parameters.keys())):
        if names:
            raise ValueError(f"the optimizer state {said} {', '.join(sorted(names)[:3])} ({len(names)} in all): "
                             "it is of another model. Leave optimizer_state out to start AdamW cold.")
    for name, parameter in parameters.items():
        shape = tuple(shapes[name])
        if shape != tuple(parameter.shape):
            raise ValueError(f"the optimizer state has shape {shape} for {name}, the model {tuple(parameter.shape)}: "
                             "it is of another model.")
