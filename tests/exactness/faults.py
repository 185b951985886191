"""What a run under test carries: a recorder of what it trains, and a fault at a chosen place of a chosen step.

Nothing of this is in the product. The runs load both classes as callbacks, through `callbacks` in their YAML file and
PYTHONPATH; which fault is to strike comes in the environment, so that the very same command resumes the run:

* ``EXACTNESS_ATTEMPT``: number of the process.
* ``EXACTNESS_FAULT``: JSON of a `Fault`, or nothing.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ATTEMPT, FAULT = "EXACTNESS_ATTEMPT", "EXACTNESS_FAULT"
IN_STEP = ("forward", "backward", "update", "stepped", "scheduled", "decided")
IN_SWITCH = ("switch:begun", "switch:planned", "switch:done")
IN_SAVE = ("save:begun", "save:bytes", "save:event", "save:done")
ELSEWHERE = ("validate", "worker", "start", "end")
CHANGES = ("open", "os.rename", "os.symlink", "os.link", "os.remove", "os.truncate", "shutil.move")  # audit events
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        place: Where it strikes: of `IN_STEP`, `IN_SWITCH`, `IN_SAVE`, `ELSEWHERE`, or ``outside`` (the parent
            sends a signal). ``save:event`` is before the next change of a name in the checkpoints' folder: a file
            opened for writing, renamed, linked or removed.
        step: In which step, counted from 1, or at the first such place after it.
        action: ``kill`` (SIGKILL), ``term`` (SIGTERM) or ``int`` (SIGINT) of this rank; with ``-all`` of the group,
            ranks and loader processes, as a scheduler and a terminal do it; or ``raise``.
        rank: Which rank is struck.
        turn: Which micro-batch of the step, or which of the events of a save; counted from 0.
        share: How much of the checkpoint is written when ``save:bytes`` strikes.
        delay: Seconds that the parent waits after the step (``outside``).
    """

    place: str
    step: int
    action: str = "kill-all"
    rank: int = 0
    turn: int = 0
    share: float = 0.5
    delay: float = 0.0

    @property
    def signal(self) -> int:
        """The signal that it sends."""
        return {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}[self.action.partition("-")[0]]

    def dump(self) -> str:
        """As it travels through the environment."""
        return json.dumps(asdict(self))


def planned_fault() -> Fault | None:
    """The fault that the environment asks for."""
    values = json.loads(os.environ.get(FAULT) or "null")
    return Fault(**values) if values else None


if os.environ.get(ATTEMPT):
    import torch
    from lightning.pytorch import Callback
else:  # read by the parent, which needs neither
    Callback = object


def attempt() -> int:
    """Number of this process."""
    return int(os.environ[ATTEMPT])


def append(path: Path, values: dict[str, Any]) -> None:
    """Add one line with a single write: a kill leaves it whole or not at all."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(values) + "\n").encode())
    finally:
        os.close(handle)


class Recorder(Callback):
    """Writes what is trained, for each step and rank: the samples before the update, and the weights right after it.

    Before, because a rank may be killed in its update when its gradient is in the others' weights already; and right
    after, because a later hook might not be reached.

    Args:
        folder: Where ``rankN.jsonl`` and, at the end, ``final.pt`` are written.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.heads: list[Any] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Look at the weights whenever the optimizer has written them."""
        parameters = list(module.parameters())

        def note(optimizer: Any, *_: Any) -> None:
            digest = hashlib.sha256()
            for parameter in parameters:
                state = optimizer.state[parameter]
                for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"], state["step"]):
                    digest.update(tensor.detach().cpu().numpy().tobytes())
            self.write(trainer, digest=digest.hexdigest()[:16])

        trainer.optimizers[0].register_step_post_hook(note)

    def on_before_optimizer_step(self, trainer: Any, module: Any, optimizer: Any) -> None:
        """Write the samples whose gradients the update is made of, all ranks' by now."""
        self.write(trainer, world=trainer.world_size, heads=self.heads, eta=optimizer.param_groups[0]["lr"])

    def write(self, trainer: Any, **values: Any) -> None:
        """Add a line about the step that is being made."""
        append(self.folder / f"rank{trainer.global_rank}.jsonl",
               {"attempt": attempt(), "rank": trainer.global_rank, "step": trainer.global_step + 1, **values})

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Collect the names of a step's micro-batches."""
        if batch_idx % trainer.accumulate_grad_batches == 0:
            self.heads = []
        self.heads.append(batch[:, :4].tolist())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """Keep weights and moments for a comparison that allows for rounding."""
        if trainer.is_global_zero and trainer.global_step:
            state = trainer.optimizers[0].state
            named = {name: [parameter.detach(), state[parameter]["exp_avg"], state[parameter]["exp_avg_sq"]]
                     for name, parameter in module.named_parameters() if parameter in state}
            torch.save(named, self.folder / "final.pt")


class Striker(Callback):
    """Strikes once, at the place and step of the planned fault.

    Args:
        folder: Where ``fired.jsonl`` tells that it struck.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.fault = planned_fault()
        self.armed = self.fault is not None
        self.trainer: Any = None

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Lay the mine."""
        self.trainer = trainer
        if self.fault is None or self.fault.rank != trainer.global_rank:
            self.armed = False
            return
        family = self.fault.place.partition(":")[0]
        {"forward": self.in_forward, "backward": self.in_backward, "update": self.in_update, "stepped": self.in_clock,
         "scheduled": self.in_switch_callback, "decided": self.in_switch_callback, "switch": self.in_switch,
         "save": self.in_save}.get(family, lambda: None)()
        if self.is_at("start"):
            self.strike()

    def due(self) -> bool:
        """Whether the step and the micro-batch are reached."""
        if not self.armed or self.trainer.validating or self.trainer.sanity_checking:
            return False
        if self.trainer.global_step + 1 < self.fault.step:
            return False
        accumulation = self.trainer.accumulate_grad_batches
        ready = self.trainer.fit_loop.epoch_loop.batch_progress.current.ready - 1
        turn = ready % accumulation
        return self.fault.place not in ("forward", "backward", "worker") or turn == self.fault.turn % accumulation

    def strike(self, detail: str = "") -> None:
        """Say so, and do it."""
        self.tell(detail)
        if self.fault.action == "raise":
            raise RuntimeError(f"injected at {self.fault.place}")
        number = self.fault.signal
        if self.fault.action.endswith("-all"):
            os.killpg(os.getpgrp(), number)
        else:
            os.kill(os.getpid(), number)

    def tell(self, detail: str = "") -> None:
        """Write down that the fault strikes; it will not strike again."""
        self.armed = False
        append(self.folder / "fired.jsonl", {"attempt": attempt(), "made": self.trainer.global_step, "detail": detail,
                                             **asdict(self.fault)})

    def made(self) -> bool:
        """Whether the step of the fault has been made."""
        return self.armed and self.trainer.global_step >= self.fault.step

    def around(self, owner: Any, name: str, before: Callable[[], bool] | None = None,
               after: Callable[[], bool] | None = None) -> None:
        """Strike before or after each call of a method, if the condition holds."""
        inner = getattr(owner, name)

        def wrapped(*arguments: Any, **named: Any) -> Any:
            if before is not None and before():
                self.strike()
            result = inner(*arguments, **named)
            if after is not None and after():
                self.strike()
            return result

        setattr(owner, name, wrapped)

    def in_forward(self) -> None:
        """Between the layers."""
        model = self.trainer.lightning_module.model
        next(iter(model.model.layers)).register_forward_hook(lambda *_: self.strike() if self.due() else None)

    def in_backward(self) -> None:
        """When half of the gradients are there."""
        parameters = list(self.trainer.lightning_module.parameters())
        parameters[len(parameters) // 2].register_hook(lambda _: self.strike() if self.due() else None)

    def in_update(self) -> None:
        """When half of the parameters are updated."""
        inner = torch._fused_adamw_

        def half(*lists: Any, **settings: Any) -> None:
            if not self.due():
                inner(*lists, **settings)
                return
            middle = max(1, len(lists[0]) // 2)
            inner(*(values[:middle] for values in lists), **settings)
            self.strike()
            inner(*(values[middle:] for values in lists), **settings)

        torch._fused_adamw_ = half

    def in_clock(self) -> None:
        """After the update, before the clock goes on."""
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler
        self.around(scheduler, "step", before=self.made)

    def stepped(self) -> bool:
        """Whether a step, that of the fault or a later one, has just been made."""
        return self.made() and not self.trainer.fit_loop._should_accumulate()

    def in_switch_callback(self) -> None:
        """Before or after the callback that switches has looked at the learning rate."""
        before = self.fault.place == "scheduled"
        self.around(self.switcher(), "on_train_batch_end", **{"before" if before else "after": self.stepped})

    def in_switch(self) -> None:
        """Inside the switch: before it is planned, after that, or when it is done."""
        switcher, where = self.switcher(), self.fault.place
        loader = self.trainer.fit_loop._combined_loader.flattened[0]
        inside = False
        begin = switcher.switch

        def switch(*arguments: Any) -> None:
            nonlocal inside
            inside = True
            begin(*arguments)
            inside = False
            if where == "switch:done" and self.made():
                self.strike()

        switcher.switch = switch
        self.around(loader, "plan", before=lambda: where == "switch:begun" and inside and self.made(),
                    after=lambda: where == "switch:planned" and inside and self.made())

    def switcher(self) -> Any:
        """The product's callback that switches."""
        return next(callback for callback in self.trainer.callbacks
                    if type(callback).__name__ == "PhaseSwitchCallback")

    def in_save(self) -> None:
        """Before, within or after the writing of a checkpoint, or among the changes of names around it."""
        place, strategy = self.fault.place, self.trainer.strategy
        folder, started, seen = os.path.abspath(f"{self.trainer.default_root_dir}/checkpoints"), False, 0
        write = strategy.save_checkpoint

        def save(checkpoint: Any, *arguments: Any, **named: Any) -> None:
            nonlocal started
            started = started or self.made()
            if started and self.armed and place == "save:begun":
                self.strike()
            if started and self.armed and place == "save:bytes":
                self.cut_short(checkpoint)
            write(checkpoint, *arguments, **named)
            if started and self.armed and place == "save:done":
                self.strike()

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if not started or not self.armed or event not in CHANGES:
                return
            if event == "open" and not (arguments[2] or 0) & WRITES:
                return
            paths = [os.path.abspath(os.fsdecode(path)) for path in arguments if isinstance(path, (str, bytes))]
            if any(path.startswith(folder + os.sep) for path in paths):
                seen += 1
                if seen > self.fault.turn:
                    self.strike(event)

        strategy.save_checkpoint = save
        if place == "save:event":
            sys.addaudithook(watch)

    def cut_short(self, checkpoint: Any) -> None:
        """Let the kernel end the process when it has written a part of the checkpoint.

        A write past the limit ends in SIGXFSZ, which nobody catches: as sudden as SIGKILL, at a known byte, however
        the checkpoint is written.
        """
        whole = io.BytesIO()
        torch.save(checkpoint, whole)
        limit = int(self.fault.share * whole.tell())
        self.tell(f"{self.fault.share:.0%}")
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Kill a loader's worker, as a machine short of memory would."""
        workers = multiprocessing.active_children()
        if self.is_at("worker") and self.due() and workers:
            self.tell()
            os.kill(workers[self.fault.turn % len(workers)].pid, signal.SIGKILL)

    def on_validation_batch_start(self, trainer: Any, *_: Any) -> None:
        """In the middle of a validation."""
        if self.is_at("validate") and self.made():
            self.strike()

    def on_train_end(self, trainer: Any, module: Any) -> None:
        """After the last step, before the end is saved."""
        if self.is_at("end") and self.armed:
            self.strike()

    def is_at(self, place: str) -> bool:
        """Whether the fault belongs here."""
        return self.fault is not None and self.fault.place == place
