"""Runs programs that nobody has read, and says whether they pass their tests.

Every candidate gets a fresh interpreter in a sandbox of its own, strongest first: bubblewrap; or user, network,
process, ipc and mount namespaces with Landlock; or, only by ``allow_weak_sandbox=True``, no namespaces. The trainer is
never forked and its disk never written.

**What a candidate has.** ``/usr`` and the interpreter's library to read; a ``/tmp`` of bounded size in memory; no
network, no ``/proc``, no home folder, no environment, no capabilities; where the trainer is root, a uid of its own.
The kernel limits its processor time, memory, processes and files; a system-call filter refuses sockets, tracing, new
namespaces, keys and memory that no limit counts. Ending the first process of the sandbox ends all of them, and nothing
is mounted or written that would be left.

**How it is judged.** The tests never enter the candidate's process. The judge, the sandbox's first process, forks the
candidate's process before it reads the tests, runs the tests itself, and asks over a pipe for each value of the
candidate's functions. Values cross as plain data (numbers, text, bytes, None, lists, tuples, sets, dicts, ranges, the
items of other iterables). So there is no nonce to steal and no end to imitate: leaving early, patched builtins,
objects equal to everything, forged answers and searches through frames or memory earn nothing but wrong values.

**What this does not cover.**

- Errors in the kernel itself; no virtual machine stands behind this.
- Memory and processor time of all its processes together: limits are per process, so the worst is ``processes`` times
  ``memory_bytes``, and what the kernel holds for it. When memory runs out the kernel ends candidates, not the trainer.
- Slowing others down: caches, memory bandwidth and cores are shared.
- Reading what everybody may: ``/usr``, the interpreter, the clock, the kernel's version.
- Answers learnt by heart, and tests too weak to tell. It learns the names that tests use, and the arguments.
- The tests: they run in the sandbox, but a test that passes everything passes everything.
- Functions that take or return functions or objects of their own classes, and tests that look at arguments changed
  in place: these fail (none of HumanEval's 164 does so).
- The weak kind: files are behind Landlock where the kernel has it (5.13), signals from 6.12 on; the disk is bounded
  only file by file; a process that detaches itself when its judge is killed may stay, and so may the candidate's folder
  when the trainer is killed.
- Before Linux 5.14, without root: the kernel counts ``processes`` together with the trainer's own, so a candidate may
  be refused any children. Machines other than x86-64 and arm64 have no system-call filter here and are refused.
"""

from lit_cpt.sandbox.limits import Limits, Verdict
from lit_cpt.sandbox.pool import Sandbox, SandboxUnavailable

__all__ = ["Limits", "Sandbox", "SandboxUnavailable", "Verdict"]
