PYTHON ?= python3
STAMP := .venv/installed

quickstart: $(STAMP)  ## set up, then train a small model
	.venv/bin/stipule quickstart

test: $(STAMP)  ## set up, then run the tests without the slow ones
	.venv/bin/python -m pytest -m "not slow" -n 2

test-all: $(STAMP)  ## all tests
	.venv/bin/python -m pytest -n 2

MINUTES ?= 10
fuzz: $(STAMP)  ## new examples in all property-based tests for MINUTES=10; a failure says how to repeat it
	end=$$(($$(date +%s) + 60 * $(MINUTES))); while [ $$(date +%s) -lt $$end ]; do \
	    .venv/bin/python -m pytest -m hypothesis --hypothesis-profile fuzz -n 2 || exit 1; done

mutation: export OMP_NUM_THREADS = 1
mutation: SAMPLE = 40
mutation: $(STAMP)  ## mutation score of the core from SAMPLE random mutants of each folder
	.venv/bin/python -m pip install -q -c constraints.txt "mutmut>=3.8,<4"
	.venv/bin/python -m tests.mutation_sample --sample $(SAMPLE)

bench: export OMP_NUM_THREADS = 1
bench: $(STAMP)  ## speed and memory against the published code, under 10 minutes; writes JSON to runs/bench
	.venv/bin/python -m benchmarks.memory
	.venv/bin/python -m benchmarks.rollouts
	.venv/bin/python -m benchmarks.rl_step
	.venv/bin/python -m benchmarks.savings
	.venv/bin/python -m benchmarks.scaling

docs: $(STAMP)  ## build README and docs as site/index.html, offline; a dead link is an error
	.venv/bin/python -m sphinx -W --keep-going -q -c docs/site . site

pictures: TRAIN = .venv/bin/stipule train quickstart --seed 0 training.steps=30 training.rollouts_every=5
pictures: $(STAMP)  ## make docs/images from two runs of one to two minutes; needs chromium
	rm -rf runs/pictures
	$(TRAIN) --out runs/pictures/stp
	$(TRAIN) --out runs/pictures/unpruned pruning.spatial.ratio=0 pruning.temporal.cutoff=0 sampler.confidence_threshold=null
	.venv/bin/python docs/images/take.py runs/pictures/stp runs/pictures/unpruned

lint: $(STAMP)  ## check style and types
	.venv/bin/ruff format --check src tests docs benchmarks examples
	.venv/bin/ruff check src tests docs benchmarks examples
	.venv/bin/mypy

# To use the installed torch, e.g. on a GPU machine: make SITE=--system-site-packages quickstart
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE) .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

.PHONY: quickstart test test-all fuzz mutation bench docs pictures lint
