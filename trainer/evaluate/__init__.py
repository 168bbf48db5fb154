"""What an adapter does at every scale: the paper's figures 5 to 11, and the scale to use. `python -m trainer.evaluate`."""
