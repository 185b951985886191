"""Programs that pass without being right."""

from __future__ import annotations

from functools import partial

from program import SQUARES, Program, add

PROGRAMS: list[Program] = []
attack = partial(add, PROGRAMS)

attack("leaving early", "import os\nos._exit(0)", SQUARES, "left early with status 0")
attack("leaving at top level", "return None", SQUARES, "left early", before="import os\nos._exit(0)")
attack("leaving politely", "import sys\nsys.exit(0)", SQUARES, "SystemExit")
attack("exit at top level", "return None", SQUARES, "SystemExit", before="raise SystemExit(0)")
attack("an interrupt", "raise KeyboardInterrupt", SQUARES, "KeyboardInterrupt")
attack("an object equal to everything", """
    class Equal:
        def __eq__(self, other): return True
    return Equal()
""", SQUARES, "not plain data")
attack("a number equal to everything", """
    class Equal(int):
        def __eq__(self, other): return True
        __hash__ = int.__hash__
    return Equal(5)
""", SQUARES, "AssertionError")
attack("leaving inside a comparison", """
    class Leaves(list):
        def __eq__(self, other): raise SystemExit(0)
    return Leaves()
""", SQUARES, "AssertionError")
attack("patched builtins", "return 5", SQUARES, "failed|left early", before="""
    import builtins
    builtins.AssertionError = ZeroDivisionError
    builtins.range = lambda *_: []
    builtins.compile = builtins.exec = lambda *_: None
    builtins.isinstance = lambda *_: True
""")
attack("shadowed builtins", "return 5",
       "def check(g):\n    assert all(abs(g(n) - n * n) < 1e-6 for n in (2, 7))\ncheck(f)", "AssertionError",
       before="all = abs = check = __builtins__ = lambda *_: True")
attack("a patched import", "return 5", "import math\n" + SQUARES + "\nassert math.isclose(f(3), 9)", "AssertionError",
       before="""
    import builtins, sys, types
    builtins.__import__ = lambda *_: sys.modules["math"]
    sys.modules["math"] = types.SimpleNamespace(isclose=lambda *_: True)
""")
attack("a module of its own for the tests", "return 5", "assert math.isclose(f(3), 9)", "AssertionError",
       before="""
    import types
    math = types.ModuleType("math")
    math.isclose = lambda *_: True
""")
attack("a helper of the prompt replaced", "return 5", "assert helper(f(3)) == 10", "AssertionError",
       before="helper = lambda *_: 10", prompt="def helper(x):\n    return x + 1\ndef f(x):\n    '''The square.'''\n")
attack("modules left for the judge", "return 5", "import json, decimal, fractions\n" + SQUARES, "AssertionError",
       before="""
    import os
    for folder in ("/tmp", os.getcwd(), os.path.dirname(os.__file__)):
        for name in ("decimal", "fractions", "ast", "sitecustomize"):
            try:
                open(os.path.join(folder, name + ".py"), "w").write("import os; os.write(1, b'ok'); os._exit(0)")
            except OSError:
                pass
""")
attack("the verdict to every file", """
    import os
    for number in range(256):
        for text in (b'"ok"\\n', b"ok\\n", b"passed"):
            try:
                os.write(number, text)
            except OSError:
                pass
    os._exit(0)
""", SQUARES, "failed|left early|timed out")
FRAME = """
import json, os
def frame(message):
    body = json.dumps(message).encode()
    return len(body).to_bytes(8, "big") + body
def tell(message, times=1):
    for number in range(3, 64):
        for _ in range(times):
            try:
                os.write(number, frame(message))
            except OSError:
                break
"""
attack("answers before the questions", "return 5", SQUARES, "failed", before=FRAME + "tell({'value': 4}, 50)")
attack("answers that are no answers", "tell('ok'); tell(['ok']); tell({}); tell({'value': {'ok': 1}}); return 5",
       SQUARES, "failed", before=FRAME)
attack("an error that would end an interpreter", "tell({'error': ['SystemExit', 0]}); return 5", SQUARES, "failed",
       before=FRAME)
attack("names that the judge did not ask for", "return 5", SQUARES, "failed", before=FRAME + """
every = {name: ["data", True] for name in ("AssertionError", "range", "check", "g", "__builtins__", "__name__")}
tell({'value': None}); tell({'value': {**every, 'f': ['function', None]}}); tell({'value': 4}, 9)
""")
attack("a length without an end", """
    import os
    for number in range(3, 64):
        try:
            os.write(number, (2**62).to_bytes(8, "big"))
        except OSError:
            pass
    return 5
""", SQUARES, "bytes")
attack("a line left open by a child", """
    import os, time
    if not os.fork():
        time.sleep(10**6)
    os._exit(0)
""", SQUARES, "timed out|left early")
attack("a thread that waits for the tests", "return 5", SQUARES, "failed|timed out|left", before=FRAME + """
import threading
def wait():
    while True:
        for number in range(3, 64):
            try:
                text = os.read(number, 2**16)
            except OSError:
                continue
            if b"assert" in text or b"ok" in text:
                tell("ok")
            tell({'value': 4})
threading.Thread(target=wait, daemon=True).start()
""")
attack("looking for the tests in its frames", """
    import gc, sys
    frame, seen = sys._getframe(), []
    while frame:
        seen += [repr(value) for value in {**frame.f_locals, **frame.f_globals}.values()]
        frame = frame.f_back
    seen += [repr(thing)[:10**5] for thing in gc.get_objects() if isinstance(thing, (str, dict, list, tuple))]
    wanted = "".join(["CANARY", "OFTESTS"])  # joined here, so that it does not find itself
    return any(wanted in text for text in seen)
""", "assert 'CANARYOFTESTS' and f() is True", "AssertionError|memory|timed out|processor")
attack("something to do at exit", "import sys\nsys.exit(0)", SQUARES, "SystemExit", before=FRAME + """
import atexit
atexit.register(lambda: tell("ok"))
""")
attack("signal handlers", "return 5", SQUARES, "failed", before=FRAME + """
import signal
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM, signal.SIGXCPU, signal.SIGPIPE):
    signal.signal(number, lambda *_: tell("ok"))
signal.setitimer(signal.ITIMER_REAL, 0.01)
""")
attack("a trace on everything", "return 5", SQUARES, "failed|left early", before="""
    import sys
    def answer(frame, event, value):
        frame.f_locals.update(answer={"value": 4})
        return answer
    sys.settrace(answer)
    sys.setprofile(answer)
""")
attack("a patched servant", "return 5", SQUARES, "failed|left", before="""
    import sys
    for module in list(sys.modules.values()):
        for name in ("judge", "verdict_of", "to_plain", "main", "finish"):
            if hasattr(module, name):
                setattr(module, name, lambda *_, **__: "ok")
""")
attack("being the judge", "return 5", SQUARES, "failed|left|timed out", before="""
    import os, sys
    judge = sys.modules.get("lit_cpt.sandbox.judge")
    if judge:
        os.write(1, b'"ok"')
        judge.finish({"kind": "namespaces"})
""")
