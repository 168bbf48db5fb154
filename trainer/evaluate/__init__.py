"""Measures an adapter at every scale: the paper's figures 5 to 11, and the recommended scale. `python -m trainer.evaluate`."""
