"""`python -m trainer.benchmark`: measures the speed of training on this machine, relative to its own peak and to baselines."""
