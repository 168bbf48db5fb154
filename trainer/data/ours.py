"""How the project's own files are recognised in a folder of pictures, so that they are never learnt."""

MARK = "Scribble LoRA contact sheet"
"""In the Description of a contact sheet's PNG."""

RECIPE, METRICS = "recipe.json", "metrics.jsonl"
"""A folder with both files is a run folder."""
