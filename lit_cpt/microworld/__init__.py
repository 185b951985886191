"""A small seeded world to pretrain on and to be asked about: corpora, tokenizer, model config, probes.

Everything here is free of torch. `lit_cpt.microworld.tokenizer` trains the tokenizer and `lit_cpt.microworld.tasks`
writes the probes as tasks for lm-eval; import those from their files.
"""

from __future__ import annotations

from lit_cpt.microworld.files import SHAPES, write_corpora, write_model_config
from lit_cpt.microworld.probes import FAMILIES, ChoiceProbe, CodeProbe, NumberProbe, Probe
from lit_cpt.microworld.proportions import LABORATORY, Proportions
from lit_cpt.microworld.world import World

__all__ = [
    "FAMILIES",
    "LABORATORY",
    "SHAPES",
    "ChoiceProbe",
    "CodeProbe",
    "NumberProbe",
    "Probe",
    "Proportions",
    "World",
    "write_corpora",
    "write_model_config",
]
