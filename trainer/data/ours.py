"""Recognises the project's own files in a folder of pictures, so that they are never trained on."""

MARK = "Scribble LoRA contact sheet"
"""Text in the Description of a contact sheet's PNG."""

RECIPE, METRICS = "recipe.json", "metrics.jsonl"
"""A folder with both files is a run folder."""
