"""What the files of a run folder are called."""

RECIPE = "recipe.json"
METRICS = "metrics.jsonl"
EXPORT = "export.json"
FINISHED = "finished.json"
LOCK = ".lock"
OURS = ("checkpoints", METRICS, "pytorch_lora_weights.safetensors", "loss.png", FINISHED, "samples")
"""Names that somebody else may have used in a folder that is given as a run's."""
