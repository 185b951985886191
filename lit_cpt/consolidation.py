"""What a checkpoint holds, told without loading it, and one file made of what several ranks wrote."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from lit_cpt.background import REST
from lit_cpt.checkpoints import damage, step_of
from lit_cpt.publishing import publish
from lit_cpt.weights import is_distributed


@dataclass(frozen=True)
class Holdings:
    """What a checkpoint holds.

    Args:
        path: Where it lies.
        bytes: Its size on the disk.
        damage: What is wrong with it; None if it is whole. Of a damaged one nothing else is known but the step.
        step: Optimizer steps; of a damaged one as its name tells.
        tokens_seen: Tokens trained on; None where lit_cpt did not write it.
        model: Kind of model, such as ``llama``; None where lit_cpt did not write it.
        parameters: Numbers in its weights; tied ones count once for each name.
        optimizer: Whether it holds the optimizer's state.
        ranks: Ranks that wrote a part of it; 0 for one file.
    """

    path: str
    bytes: int
    damage: str | None = None
    step: int | None = None
    tokens_seen: int | None = None
    model: str | None = None
    parameters: int | None = None
    optimizer: bool = False
    ranks: int = 0

    def describe(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def holdings(path: Path) -> Holdings:
    """What the checkpoint ``path``, a file or a folder, holds.

    Raises:
        FileNotFoundError: There is none.
    """
    check_there(path)
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size, wrong = sum(file.stat().st_size for file in files), damage(path)
    if wrong is not None:
        return Holdings(str(path), size, wrong, step_of(path))
    saved = rest_of(path)
    ours = saved.get("lit_cpt") or {}
    shapes = dict(shapes_of(path, saved))
    return Holdings(
        str(path), size, None, saved.get("global_step"), ours.get("tokens_seen"),
        (ours.get("architecture") or {}).get("model_type"),
        sum(math.prod(shape) for name, shape in shapes.items() if name.startswith("state_dict.")),
        any(name.endswith(".exp_avg") for name in shapes),
        len({file.name.split("_")[2] for file in files if file.suffix == ".distcp"}))


def check_there(path: Path) -> None:
    """Refuse a checkpoint that is not there.

    Raises:
        FileNotFoundError: It is not.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such checkpoint. Give one (*.ckpt), or a run's folder.")


def rest_of(path: Path) -> dict[str, Any]:
    """A checkpoint without the tensors of model and optimizer, where it is a folder; tensors stay on the disk."""
    saved: dict[str, Any] = torch.load(path / REST if path.is_dir() else path, map_location="cpu", weights_only=True,
                                       mmap=True)
    return saved


def shapes_of(path: Path, saved: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names of the tensors of model and optimizer, as a folder has them, with their shapes."""
    if is_distributed(path):
        for name, item in FileSystemReader(path).read_metadata().state_dict_metadata.items():
            if isinstance(item, TensorStorageMetadata):
                yield name, tuple(item.size)
        return
    for name, value in saved.get("state_dict", {}).items():
        yield f"state_dict.{name}", tuple(value.shape)
    for number, optimizer in enumerate(saved.get("optimizer_states", [])):
        for index, one in optimizer["state"].items():
            for key, value in one.items():
                yield f"optimizer_{number}.state.{index}.{key}", tuple(getattr(value, "shape", ()))


def consolidate(folder: Path, output: Path) -> None:
    """Make one file of a checkpoint that several ranks wrote; any strategy resumes from it.

    Takes the memory of all weights and moments once, and of the disk twice their size while it works.

    Args:
        folder: A whole checkpoint that is a folder.
        output: The file, not there yet.

    Raises:
        FileExistsError: ``output`` is there.
        FileNotFoundError: ``folder`` is not.
        OSError: It could not be written.
        ValueError: ``folder`` is none that several ranks wrote, or is damaged.
    """
    check_there(folder)
    if not is_distributed(folder):
        raise ValueError(f"{folder} was not written by several ranks: there is nothing to consolidate.")
    if (wrong := damage(folder)) is not None:
        raise ValueError(f"{folder} is damaged: {wrong}.")
    if output.exists():
        raise FileExistsError(f"--output {output} is there already; name another file.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".consolidating-") as aside:
        dcp_to_torch_save(folder, Path(aside) / "tensors")
        saved = torch.load(Path(aside) / "tensors", map_location="cpu", weights_only=True, mmap=True)
        optimizers = [numbered(saved[f"optimizer_{number}"]) for number in range(len(saved) - 1)]
        whole = {**rest_of(folder), "state_dict": saved["state_dict"], "optimizer_states": optimizers}
        publish(output, lambda file: torch.save(whole, file))


def numbered(optimizer: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the number of each parameter, as torch saves it in one process, instead of by name."""
    order = [name for group in optimizer["param_groups"] for name in group["params"]]
    place = {name: number for number, name in enumerate(order)}
    groups = [{**group, "params": [place[name] for name in group["params"]]} for group in optimizer["param_groups"]]
    return {"state": {place[name]: one for name, one in optimizer["state"].items()}, "param_groups": groups}
