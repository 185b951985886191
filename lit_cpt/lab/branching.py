"""Gives an arm the records of the run that it goes on from, so that its folder tells the whole of its training."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from lit_cpt.events import DIARY, append_event
from lit_cpt.json_lines import read_lines
from lit_cpt.ledger import LEDGER
from lit_cpt.publishing import publish, publish_text


def branch(parent: Path, child: Path, step: int, tokens_seen: int) -> None:
    """Begin the run folder ``child`` with what ``parent`` wrote up to ``step``; what ``child`` held is gone.

    Its diary then tells of the branch; `fit` adds what of the recipe was changed.
    """
    shutil.rmtree(child, ignore_errors=True)
    for name in (DIARY, LEDGER):
        kept = [line for line in read_lines(parent / name) if line.get("step", 0) <= step]
        publish_text(child / name, "".join(f"{json.dumps(line)}\n" for line in kept))
    for file in sorted(parent.glob("evals/step*.json")):
        if int(file.stem.removeprefix("step")) <= step:
            publish_text(child / "evals" / file.name, file.read_text(encoding="utf-8"))
    for file in sorted(parent.glob("events.out.tfevents*")):
        publish(child / file.name, partial(copy_events, file, step=step))
    append_event(child, "branch", step=step, tokens_seen=tokens_seen, parent=parent.name)


def copy_events(file: Path, copy: Any, step: int) -> None:
    """Write the events of a TensorBoard file up to ``step``."""
    writer = RecordWriter(copy)
    for record in RawEventFileLoader(str(file)).Load():
        if Event.FromString(record).step <= step:
            writer.write(record)
