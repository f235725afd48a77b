# Everything runs in a virtual environment that is made on first use.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= outputs/demo

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-gpu lint type format docs bench clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: $(READY)  ## train on the embedded digits (under a minute) and show a grid of samples
	$(BIN)/diffgen-train experiment=quickstart run_dir=$(DEMO)
	$(BIN)/diffgen-sample ckpt=$(DEMO) n=50 out=$(DEMO) overwrite=true
	@$(BIN)/python scripts/show.py $(DEMO)/grid.png

test: $(READY)  ## the fast tests
	$(BIN)/python -m pytest -n auto --dist worksteal

test-slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)  ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(READY)  ## style and forbidden constructs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

type: $(READY)  ## static types
	$(BIN)/mypy

format: $(READY)  ## rewrite in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY)  ## write what scripts write in docs/ anew (not docs/combinations.md, which takes minutes: scripts/combinations.py)
	$(BIN)/python scripts/examples.py
	$(BIN)/python scripts/fault_table.py
	$(BIN)/python scripts/device_mutations.py --table
	$(BIN)/python scripts/bench_table.py
	$(BIN)/python scripts/gpu_table.py
	$(BIN)/python scripts/notebook.py

# k-diffusion without its dependencies: its samplers need none of them but torchsde and torchdiffeq.
bench: $(READY)  ## measure beside the peers on this machine, about ten minutes
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[peers]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps k-diffusion
	$(BIN)/python scripts/bench.py
	$(BIN)/python scripts/bench_table.py

clean:  ## remove the environment and caches; runs in outputs/ stay
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
