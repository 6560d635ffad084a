# Each command makes its own virtual environment in .venv when there is none.
PYTHON ?= python3

.PHONY: demo test lint

demo: .venv/ready
	.venv/bin/semples demo

test: .venv/ready
	.venv/bin/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@
