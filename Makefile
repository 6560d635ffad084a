# Each command makes its own virtual environment in .venv when there is none.
PYTHON ?= python3

.PHONY: demo test gpu lint docs versions wheel

demo: .venv/ready
	.venv/bin/semples demo

test: .venv/ready
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist worksteal

# On a machine with a GPU, by its own Python: torch and requirements-gpu.txt, no .venv and no network.
gpu:
	$(PYTHON) tests/on_a_gpu.py --out $(or $(OUT),gpu-out)

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

# The site, in site/; `.venv/bin/mkdocs serve` shows it while it is written.
docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict

# On each Python and on the oldest packages that are allowed; takes an hour and 20 GB of uv's cache;
# `make versions ONLY=3.12-newest` tries one.
versions: .venv/ready
	.venv/bin/nox $(if $(ONLY),-s "versions($(ONLY))")

wheel: .venv/ready
	rm -rf build dist
	.venv/bin/python -m build --wheel

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --editable '.[dev]'
	touch $@
