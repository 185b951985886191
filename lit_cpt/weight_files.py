"""How many parameters a model folder's weights have, by the headers of its files alone. Torch-free."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import SafetensorError, safe_open

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def stored_parameters(folder: str | Path) -> int | None:
    """Parameters in the safetensors files that ``save_pretrained`` wrote; tied ones are there once.

    Args:
        folder: Of the model; a hub name is no folder.

    Returns:
        None where there are no such files, or not all of them.
    """
    folder = Path(folder)
    index = folder / INDEX
    names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [WHOLE]
    files = [folder / name for name in names]
    return sum(map(parameters_in, files)) if all(file.is_file() for file in files) else None


def parameters_in(file: Path) -> int:
    """Numbers in all tensors of a safetensors file.

    Raises:
        ValueError: It is damaged.
    """
    try:
        with safe_open(file, "numpy") as tensors:
            return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118  # no dict
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged or ends too early ({error}): copy the model's folder again.") from None
