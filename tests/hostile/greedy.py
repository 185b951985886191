"""Programs that take more than their share."""

from __future__ import annotations

from functools import partial

from program import C, Program, add

PROGRAMS: list[Program] = []
attack = partial(add, PROGRAMS)

attack("fork bomb", """
    import os
    while True:
        os.fork()
""")
attack("more processes than allowed", """
    import os, time
    for count in range(100):
        if not os.fork():
            time.sleep(60)
            os._exit(0)
    return True
""", says="BlockingIOError")
attack("more threads than allowed", """
    import threading, time
    for count in range(100):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return True
""", says="RuntimeError")
attack("memory", "return len(bytearray(2**33)) > 0", says="killed: memory")
attack("memory in small pieces", """
    held = []
    while len(held) < 2000:
        held.append(b"x" * 2**20)
    return True
""", says="killed: memory")
attack("memory by mmap", """
    import mmap
    region = mmap.mmap(-1, 2**32)
    region[::4096] = b"x" * 2**20
    return True
""")
attack("memory of System V", "return libc.shmget(0, 2**33, 0o1600) >= 0", before=C)
attack("memory files", "return os.memfd_create('x') >= 0", before=C, says="PermissionError")
attack("a full disk", """
    for number in range(10_000):
        with open(f"/tmp/{number}", "wb") as file:
            file.write(b"x" * 2**19)
    return True
""", says="No space left")
attack("a hundred thousand files", """
    for number in range(100_000):
        open(f"/tmp/{number}", "w").close()
    return True
""")
attack("a large file", """
    with open("/tmp/large", "wb") as file:
        for _ in range(1000):
            file.write(b"x" * 2**16)
    return True
""")
attack("a sparse file", "open('/tmp/sparse', 'wb').truncate(2**40)\nreturn True")
attack("all file descriptors", "held = [open('/dev/null') for _ in range(1000)]\nreturn True", says="Too many open")
attack("an endless loop", "while True: pass", says="timed out|processor time")
attack("an endless loop that catches everything", """
    import signal
    for number in range(1, 65):
        try:
            signal.signal(number, lambda *_: None)
        except (OSError, ValueError):
            pass
    while True:
        try:
            while True: pass
        except BaseException:
            pass
""", says="timed out|killed")
attack("an endless loop at top level", "return True", before="while True: pass", says="timed out|processor time")
attack("a loop inside C", "return 3 ** 3 ** 3 ** 3 > 0", says="timed out|killed|memory")
attack("a backtracking pattern", "import re\nre.match('(a+)+$', 'a' * 60 + 'b')\nreturn True", says="timed out|killed")
attack("sleeping for ever", "import time\ntime.sleep(10**6)\nreturn True", says="timed out")
attack("stopping itself", "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: signal.pause()",
       says="timed out")
attack("recursion", "return f()", says="RecursionError")
attack("recursion without a limit", "import sys\nsys.setrecursionlimit(10**9)\nreturn [f()] == 1 or True",
       says="killed|memory|RecursionError|timed out")
attack("huge output", """
    import os
    for _ in range(10_000):
        print("passed" * 10_000)
        os.write(2, b"ok" * 10_000)
    return False
""", says="failed: AssertionError|timed out|processor time")
attack("a huge answer", "return 'x' * (2**25)", "assert len(f()) == 2**25", says="bytes|memory")
attack("an endless answer", "import itertools\nreturn itertools.count()", says="memory|timed out|processor time")
attack("an answer nested too deeply", """
    value = []
    for _ in range(100_000):
        value = [value]
    return value
""", "f()", says="RecursionError")
attack("raising its own limits", """
    import resource
    raised = 0
    for name in ("AS", "NPROC", "CPU", "FSIZE", "NOFILE"):
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (2**40, 2**40))
            raised += 1
        except (ValueError, OSError):
            pass
    return raised > 0
""")
