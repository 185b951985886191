"""lm-eval on a live model: real task definitions, every rank at work, training left as it was.

`lit_cpt.harness.evaluation.evaluate` is the way in; what stands here knows no torch.
"""

from lit_cpt.harness.families import FAMILIES, Family, family
from lit_cpt.harness.results import FamilyResult, Results, Score
from lit_cpt.harness.suite import Effort, Suite

__all__ = ["FAMILIES", "Effort", "Family", "FamilyResult", "Results", "Score", "Suite", "family"]
