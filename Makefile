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
SEEDS ?= 1 2

.PHONY: demo test check coco-boxes world-seeds install clean-demo

install: $(STAMP)

$(STAMP): setup.py
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; set PYTHON=<a Python 3.11 or later>."; exit 2; }
	@command -v g++ >/dev/null || { echo "error: g++ is not installed; DeepSpeed compiles its all-reduce with it."; exit 2; }
	@echo "installing into $(VENV) (about 1.3 GB, a minute or two)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" RANKS=$(RANKS) PORT=$(PORT) bash scripts/demo.sh $(RUNS)/demo

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

# make coco-boxes DATA=<folder with captions_val2017.json, boxes_val2017.txt, coco.names, splits.json>
#   PAIRS=<folder of SugarCrepe's JSON files>  SEEDS="1 2"
coco-boxes: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" RANKS=$(RANKS) PORT=$(PORT) SEEDS="$(SEEDS)" PAIRS="$(PAIRS)" \
		bash scripts/coco_boxes.sh "$(DATA)" $(RUNS)/coco-boxes

# the embedded world, all stages, several seeds: what writing negatives brings on edited captions
world-seeds: $(STAMP)
	@PATH="$(abspath $(BIN)):$$PATH" RANKS=$(RANKS) PORT=$(PORT) SEEDS="$(SEEDS)" \
		bash scripts/world_seeds.sh $(RUNS)/world
