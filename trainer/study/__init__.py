"""Studies: tables of recipes, trained, evaluated and compared. `python -m trainer.study`."""
