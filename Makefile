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
	.venv/bin/python -m benchmarks.savings
	.venv/bin/python -m benchmarks.scaling

docs: $(STAMP)  ## README and docs as a site in site/index.html; a dead link fails; no network
	.venv/bin/python -m sphinx -W --keep-going -q -c docs/site . site

pictures: TRAIN = .venv/bin/stipule train quickstart --seed 0 training.steps=30 training.rollouts_every=5 model.autocast=true
pictures: $(STAMP)  ## docs/images anew, from two runs of a minute or two each; needs chromium
	rm -rf runs/pictures
	$(TRAIN) --out runs/pictures/stp
	$(TRAIN) --out runs/pictures/unpruned pruning.spatial.ratio=0 pruning.temporal.cutoff=0
	.venv/bin/python docs/images/take.py runs/pictures/stp runs/pictures/unpruned

lint: $(STAMP)  ## style and types
	.venv/bin/ruff format --check src tests docs
	.venv/bin/ruff check src tests docs
	.venv/bin/mypy

# An environment of your own (a GPU box's torch): make SITE=--system-site-packages quickstart
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE) .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

.PHONY: quickstart test test-all bench docs pictures lint
