"""Continued pretraining of language models on PyTorch Lightning, by the recipe of arXiv 2407.07263.

These names need no torch. The heavier ones live in their files: `lit_cpt.module`, `lit_cpt.data`,
`lit_cpt.stream`, `lit_cpt.callbacks`.
"""

from lit_cpt.blends import Blend
from lit_cpt.recipe import AdamW, Batch, Phase, Recipe, Trigger
from lit_cpt.schedules import WSD, Constant, Cosine, Curve, InverseSqrt, Linear, Rewarm, Warmup

__version__ = "0.1.0"
__all__ = ["WSD", "AdamW", "Batch", "Blend", "Constant", "Cosine", "Curve", "InverseSqrt", "Linear", "Phase",
           "Recipe", "Rewarm", "Trigger", "Warmup"]
