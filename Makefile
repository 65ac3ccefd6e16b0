PYTHON ?= python3
STAMP := .venv/installed

quickstart: $(STAMP)  ## set up, then watch a small model learn
	.venv/bin/stipule quickstart

test: $(STAMP)  ## set up, then run the tests that take minutes
	.venv/bin/python -m pytest -m "not slow" -n 2

test-all: $(STAMP)  ## the long ones too
	.venv/bin/python -m pytest -n 2

bench: export OMP_NUM_THREADS = 1
bench: $(STAMP)  ## speed and memory against the published way of doing it, under 10 minutes; runs/bench has the json
	.venv/bin/python -m benchmarks.memory
	.venv/bin/python -m benchmarks.rollouts
	.venv/bin/python -m benchmarks.rl_step
	.venv/bin/python -m benchmarks.scaling

lint: $(STAMP)  ## style and types
	.venv/bin/ruff format --check src tests
	.venv/bin/ruff check src tests
	.venv/bin/mypy

# An environment of your own (a GPU box's torch): make SITE=--system-site-packages quickstart
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE) .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

.PHONY: quickstart test test-all bench lint
