"""Ready configs, found by name: ``--config base --config recipes/paper``."""
