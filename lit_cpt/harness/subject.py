"""The language model inside a LightningModule, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from lit_cpt.harness.network import inner


def model_of(module: Any, given: Any = None) -> nn.Module:
    """The model to evaluate.

    Args:
        module: A LightningModule.
        given: The model itself, or the name of the attribute of ``module`` that holds it; None looks at
            ``module.model`` and then at ``module``.

    Raises:
        ValueError: There is no Hugging Face language model there.
    """
    if isinstance(given, nn.Module):
        return given
    place = f"its attribute {given!r}" if given else "its attribute `model`, or itself"
    held = [getattr(module, given, None)] if given else [getattr(module, "model", None), module]
    for found in held:
        if isinstance(found, nn.Module) and hasattr(inner(found), "config"):
            return found
    raise ValueError(f"{type(module).__name__} holds no Hugging Face model to evaluate ({place}): pass "
                     "EvalCallback(model=...), the model or the attribute's name.")


def tokenizer_of(module: Any, given: Any = None) -> Any:
    """The tokenizer to evaluate with.

    Args:
        module: A LightningModule.
        given: A tokenizer of transformers, or a folder or hub name with one; None takes ``module.tokenizer``, or that
            of the model which ``module.pretrained`` or ``module.architecture`` names.

    Raises:
        ValueError: Nothing names one, or what is named cannot be read.
    """
    places = [given] if given is not None else [getattr(module, name, None)
                                                for name in ("tokenizer", "pretrained", "architecture")]
    for found in places:
        if callable(found):
            return found
        if isinstance(found, (str, Path)):
            return read_tokenizer(found)
    raise ValueError(f"{type(module).__name__} names no tokenizer: pass EvalCallback(tokenizer=...), one of "
                     "transformers or the folder it was saved in.")


def read_tokenizer(place: str | Path) -> Any:
    """The tokenizer in a folder, or under a hub name.

    Raises:
        ValueError: There is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(place))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"no tokenizer can be read from {place}: {said} Give a folder with tokenizer.json, as "
                         "`save_pretrained` writes it, or the name of a hub model.") from error
