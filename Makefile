# The two commands of the README, and what stands behind them. Everything runs in a venv of its own (.venv).
SHELL := /bin/bash
.SHELLFLAGS := -eo pipefail -c
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUNS ?= runs
RANKS ?= 2
PORT ?= 29600
DATA ?=
PAIRS ?=
PICTURES ?=
SEEDS ?= 1 2
TESTERS ?= 2

# The venv's own ninja and launcher first, as in an activated venv: another version of ninja would compile DeepSpeed's all-reduce anew.
export PATH := $(abspath $(BIN)):$(PATH)

DAY := $(shell date +%Y-%m-%d)

.PHONY: demo docs test test-long test-gpu bench bench-gpu check coco-boxes world install

install: $(STAMP)

$(STAMP): setup.py requirements.lock
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; set PYTHON=<a Python 3.11 or later>."; exit 2; }
	@command -v g++ >/dev/null || { echo "error: g++ is not installed; DeepSpeed compiles its all-reduce with it."; exit 2; }
	@echo "installing into $(VENV) (about 1.3 GB, a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m tagsds.experiment demo --output $(RUNS)/demo --ranks $(RANKS) --port $(PORT)

# Two processes, a file of tests each, with one thread each: most tests wait for processes of their own to start.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

# Tests that need a GPU; a sentence where there is none.
test-gpu: $(STAMP)
	@$(BIN)/python -m tests.bench.gpu_tests

# What a step costs (docs/results/speed.md): some ten minutes on a CPU; on a GPU under ten.
bench: $(STAMP)
	@$(BIN)/python -m tests.bench.speed --output benchmarks/$(DAY)-speed.json

bench-gpu: $(STAMP)
	@$(BIN)/python -m tests.bench.gpu --output benchmarks/$(DAY)-gpu.json

# The pages of docs/ as a site: site/index.html. A broken link is an error.
docs: $(STAMP)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet --site-dir site
	@echo "written: site/index.html"

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# make coco-boxes DATA=<folder with captions_val2017.json, boxes_val2017.txt, coco.names, splits.json>
#   [PAIRS=<folder of SugarCrepe's JSON files>] [PICTURES=<folder of the pictures, for the report>] [SEEDS="1 2"]
coco-boxes: $(STAMP)
	@$(BIN)/python -m tagsds.experiment coco-boxes --output $(RUNS)/coco-boxes --ranks $(RANKS) --port $(PORT) \
		--seeds $(SEEDS) $(if $(DATA),--source "$(DATA)") $(if $(PAIRS),--pairs "$(PAIRS)") $(if $(PICTURES),--pictures "$(PICTURES)")

# the embedded world with several seeds: what writing negatives brings on edited captions
world: $(STAMP)
	@$(BIN)/python -m tagsds.experiment world --output $(RUNS)/world --ranks $(RANKS) --port $(PORT) --seeds $(SEEDS)
