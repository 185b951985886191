"""lm-eval on a live model: real task definitions, every rank at work, training left as it was.

`lit_cpt.harness.evaluation.evaluate` is the way in; what stands here knows no torch.
"""

from lit_cpt.harness.families import FAMILIES, Family, family
from lit_cpt.harness.results import FamilyResult, Results, Score

__all__ = ["FAMILIES", "Family", "FamilyResult", "Results", "Score", "family"]
