"""What cannot be evaluated, and why: found before the first step, without the model."""

from __future__ import annotations

from lit_cpt.harness.evaluation import Kept
from lit_cpt.harness.programs import LaterSandbox
from lit_cpt.harness.suite import Suite
from lit_cpt.harness.tasks import UnknownTask, manager_of


def check_names(suite: Suite) -> None:
    """Refuse tasks that nobody defines.

    Raises:
        UnknownTask: One of them.
        FileNotFoundError: ``suite.folder`` is not there.
    """
    for one in suite.families:
        manager_of(one)


def obstacles(suite: Suite, kept: Kept, sandbox: LaterSandbox) -> dict[str, str]:
    """Why families cannot be evaluated here; those that can be are not named.

    Tasks are loaded and the requests of the suite's sample are rendered, which the first evaluation would do anyway.

    Args:
        suite: What is to be evaluated.
        kept: Takes what was rendered.
        sandbox: Opened and tried if a family runs programs.

    Raises:
        UnknownTask: A name that lm-eval knows no task by.
    """
    found = {}
    for one in suite.families:
        try:
            requests = kept.requests.get(one, suite.root, suite.limit_of(one.name), suite.seed)
        except UnknownTask:
            raise
        except Exception as error:  # of datasets, the hub's client, jinja, a task's own code
            found[one.name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if requests.loaded.runs_programs and (problem := sandbox.preflight()) is not None:
            found[one.name] = f"the sandbox is not to be relied on: {problem}"
    return found
