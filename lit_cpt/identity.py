"""What a resumed run must share with the run it resumes, so that it trains what that one would have trained.

An identity is plain values under the names of the command line, saved in every checkpoint. Paths, micro batch,
workers, ranks, hardware and callbacks are not in it: they may change freely. Torch-free.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_cpt.manifest import Manifest
from lit_cpt.recipe import Recipe

Identity = dict[str, Any]
SINGLE = ("recipe.token_horizon", "recipe.curve", "recipe.optimizer", "data.seed", "data.window", "data.shards",
          "data.tokenizer", "model.z_loss", "model.mask_documents", "model.router_loss",
          "model.objective")
NAMED = ("recipe.phases", "data.sources")  # one field for each name, such as data.sources.web
GEOMETRY = ("data.sequence_length", "data.global_batch")
# Of a manifest's settings: where the tokenizer lay. What it does is in its fingerprint.
PLACES = ("tokenizer", "tokenizer_files")


class Difference(NamedTuple):
    """A field of the command line in which two runs differ."""

    field: str
    was: str
    now: str

    def __str__(self) -> str:
        """As in a message: ``data.seed: 42 -> 43``."""
        return f"{self.field}: {self.was} -> {self.now}"


def identity_of(recipe: Recipe, data: Any) -> Identity:
    """The identity of a run.

    Args:
        recipe: Its recipe.
        data: Its data module: ``batch``, ``seed``, ``window``, ``shards`` and ``used``, the folder of each source
            that a phase names. What it lacks is left out.
    """
    described, folders = recipe.describe(), dict(getattr(data, "used", {}))
    tokens = data.batch.tokens_per_step
    starts = [None if step is None else step * tokens for step in recipe.start_steps(tokens)]
    manifests = {name: Manifest.load(folder) for name, folder in folders.items()}
    given = {"recipe.token_horizon": recipe.horizon, "recipe.curve": described["curve"],
             "recipe.optimizer": described["optimizer"], "recipe.phases": described["phases"], "phase_starts": starts,
             "data.shards": getattr(data, "shards", 1),
             **{f"data.{name}": getattr(data, name) for name in ("seed", "window") if hasattr(data, name)}}
    if folders:
        given["data.tokenizer"] = next(iter(manifests.values())).tokenizer.fingerprint
        given["data.sources"] = {name: content_of(manifests[name], index_of(folder))
                                 for name, folder in folders.items()}
    return given


def index_of(folder: str | Path) -> bytes:
    """The bytes of a prepared source's index of chunks."""
    path = Path(folder) / "index.json"
    return path.read_bytes() if path.is_file() else b""


def content_of(manifest: Manifest, index: bytes) -> str:
    """Fingerprint of a source's training tokens and their order on disk; moving a source does not change it."""
    settings = {name: value for name, value in manifest.settings.items() if name not in PLACES}
    decides = [manifest.dtype, manifest.train.tokens, manifest.train.documents, settings,
               [[file.bytes, list(file.sha256)] for file in manifest.inputs]]
    hashed = hashlib.sha256(json.dumps(decides, sort_keys=True, default=str).encode())
    hashed.update(index)
    return hashed.hexdigest()


def differences(saved: Identity, now: Identity, tokens_seen: int) -> list[Difference]:
    """In what a run differs from the one that was saved.

    Phases appended to the recipe are no difference if they begin at ``tokens_seen`` or later, and the sources that
    they bring are none. A field that either identity lacks is not compared.
    """
    found = [Difference(field, *told_apart(saved[field], now[field])) for field in SINGLE
             if field in saved and field in now and saved[field] != now[field]]
    found += phase_differences(saved, now, tokens_seen)
    before, after = saved.get("data.sources", {}), now.get("data.sources", {})
    found += [Difference(f"data.sources.{name}", f"content {before[name][:12]}", f"content {after[name][:12]}")
              for name in before if name in after and before[name] != after[name]]
    return found


def phase_differences(saved: Identity, now: Identity, tokens_seen: int) -> list[Difference]:
    """Phases that were changed, taken away, or begin where tokens were trained already."""
    before, after, found = saved["recipe.phases"], now["recipe.phases"], []
    for place, phase in enumerate(before):
        other = after[place] if place < len(after) else None
        if phase != other:
            was, is_now = told_apart(phase, other) if other else ("there", "not there")
            found.append(Difference(f"recipe.phases.{phase['name']}", was, is_now))
    for phase, start in list(zip(after, now["phase_starts"], strict=True))[len(before):]:
        if start is not None and start < tokens_seen:
            found.append(Difference(f"recipe.phases.{phase['name']}", "not there",
                                    f"begins at {start:,} tokens, and {tokens_seen:,} are trained"))
    return found


def told_apart(was: Any, now: Any) -> tuple[str, str]:
    """Two values as text; of nested ones only what differs, ``init_args.eta_max=0.01``."""
    one, other = dict(leaves(was)), dict(leaves(now))
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]

    def text(values: dict[str, Any]) -> str:
        told = [f"{name}={values[name]}" if name else short(values[name]) for name in names if name in values]
        return ", ".join(told) or "not there"

    return text(one), text(other)


def leaves(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """The plain values in nested dictionaries, each with its dotted name."""
    if not isinstance(value, dict):
        return [(name, value)]
    return [leaf for key, member in value.items() for leaf in leaves(member, f"{name}.{key}" if name else str(key))]


def short(value: Any) -> str:
    """A value on its own; of a fingerprint its beginning."""
    return str(value)[:12] if isinstance(value, str) and len(value) == 64 else str(value)


def accepted_changes(saved: Identity, now: Identity, tokens_seen: int, allowed: Sequence[str]) -> list[Difference]:
    """The differences of a run from the one that it resumes, all of them allowed.

    Args:
        saved: Identity of the run that is resumed.
        now: Identity of this one.
        tokens_seen: Where it goes on.
        allowed: Fields that may differ; ``data.sources`` allows each ``data.sources.NAME``.

    Raises:
        ValueError: A difference that is not allowed, or an allowed field that is none.
    """
    check_fields(saved, now, allowed)
    found = differences(saved, now, tokens_seen)
    refused = [difference for difference in found
               if not any(f"{difference.field}.".startswith(f"{field}.") for field in allowed)]
    if refused:
        told = "; ".join(map(str, refused))
        options = " ".join(f"--allow-change {difference.field}" for difference in refused)
        raise ValueError(f"this run is not the one that the checkpoint was saved by ({tokens_seen:,} tokens seen). "
                         f"{told}. Restore what was, or accept the change with {options}.")
    return found


def check_fields(saved: Identity, now: Identity, allowed: Sequence[str]) -> None:
    """Refuse an allowed field that no run could differ in."""
    phases = dict.fromkeys(phase["name"] for run in (saved, now) for phase in run["recipe.phases"])
    sources = dict.fromkeys(name for run in (saved, now) for name in run.get("data.sources", {}))
    fields = [*SINGLE, *NAMED, *(f"recipe.phases.{name}" for name in phases),
              *(f"data.sources.{name}" for name in sources)]
    for field in allowed:
        if field in GEOMETRY:
            raise ValueError(f"--allow-change {field}: it ties steps to tokens and cannot change in a run. To train on "
                             "with another, start a new run with --model.optimizer_state CHECKPOINT.")
        if field not in fields:
            raise ValueError(f"--allow-change {field}: there is no such field; there are {', '.join(fields)}.")
