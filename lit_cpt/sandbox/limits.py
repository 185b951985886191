"""What one candidate may use, and what is said of it afterwards."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Limits:
    """What one candidate may use.

    Args:
        wall_seconds: From the candidate's first line to the verdict.
        cpu_seconds: Of processor time, for each process; whole seconds, as the kernel counts them.
        memory_bytes: Of address space, for each process. An interpreter alone takes about 30 MiB.
        processes: Processes and threads at one time, the first one included.
        file_bytes: The longest file.
        disk_bytes: All files together: the size of the private ``/tmp``.
        output_bytes: The longest answer of the candidate's function, as JSON.
    """

    wall_seconds: float = 5.0
    cpu_seconds: int = 4
    memory_bytes: int = 512 * 2**20
    processes: int = 16
    file_bytes: int = 2**20
    disk_bytes: int = 16 * 2**20
    output_bytes: int = 16 * 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"{field.name}={value} must be above 0: nothing runs on less.")
            if field.name != "wall_seconds" and not isinstance(value, int):
                raise TypeError(f"{field.name}={value!r} must be an int: the kernel counts in whole numbers.")


@dataclass(frozen=True)
class Verdict:
    """What became of one candidate.

    Args:
        passed: The tests ran to their end.
        reason: ``ok``; ``failed: AssertionError ...``; ``timed out``; ``killed: memory``, ``killed: processor
            time`` or ``killed: SIGSEGV``; ``left early ...``; ``worker died ...``; or ``unavailable: ...``, which
            says that the candidate was not tried.
        seconds: Wall time, with starting and stopping.
    """

    passed: bool
    reason: str
    seconds: float
