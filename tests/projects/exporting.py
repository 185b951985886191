"""Exports ``FOLDER/NAME.ckpt`` for each NAME and prints the private memory that each took at most, in bytes.

Start it with ``exporting.py FOLDER NAME ...``; the first pays for what is imported.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from lit_cpt.cli import main


def private() -> int:
    """Private memory of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak_of_export(folder: Path, name: str) -> int:
    """The most private memory during an export, above what there was before."""
    before, seen, done = private(), [0], threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.append(private())
            time.sleep(0.001)

    watch = threading.Thread(target=look)
    watch.start()
    status = main(["export", "--checkpoint", str(folder / f"{name}.ckpt"), "--output", str(folder / name)])
    done.set()
    watch.join()
    if status:
        raise SystemExit(status)
    return max(seen) - before


print(json.dumps({name: peak_of_export(Path(sys.argv[1]), name) for name in sys.argv[2:]}))
