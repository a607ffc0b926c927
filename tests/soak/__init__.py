"""The soak: `soak.py` runs it, `run` has it, `report` judges it."""
