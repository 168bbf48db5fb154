"""`python -m trainer.benchmark`: how fast training is on this machine, as shares and ratios of what it measures itself."""
