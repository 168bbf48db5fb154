PYTHON ?= python3
VENV := .venv/bin/python

.PHONY: demo test lint

demo:
	$(PYTHON) -m venv .venv && $(VENV) -m pip install -q -c constraints.txt -e . && $(VENV) -m trainer --demo

test:
	$(PYTHON) -m venv .venv && $(VENV) -m pip install -q -c constraints.txt -e '.[test]' && $(VENV) -m pytest -n 2 --dist loadfile

lint:
	$(VENV) -m ruff check && $(VENV) -m mypy
