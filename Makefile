# The same commands on a developer's machine and in CI. Needs Python 3.11 or newer, make and a shell.
PYTHON ?= python3
VENV ?= .venv
# Installed before anything that needs it: a range would take the newest build, with several GB of CUDA. Where
# the package index has CUDA builds alone, name an index of CPU builds: make setup PIP_FLAGS="--index-url ..."
TORCH ?= torch==2.13.0
PIP_FLAGS ?=
OUT ?= bench
DEMO_FLAGS ?=
# One with onnxruntime-gpu in place of onnxruntime: docs/gpu.md.
GPU_PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help setup check format test faults test-gpu bench-gpu soak demo protos lock wheel-test bench clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY)  ## install everything into .venv

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Dragoman needs Python 3.11 or newer: make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

check: setup  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup  ## put the code into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: setup  ## run the tests
	$(BIN)/python -m pytest

faults: setup  ## real servers under overload, faults, hostile and lost clients; writes .build/faults.json
	DRAGOMAN_FAULT_SUITE=full DRAGOMAN_FIGURES=.build/faults.json $(BIN)/python -m pytest tests/faults

test-gpu:  ## what only a GPU can show, with the environment's python; writes .build/gpu/tests.json
	DRAGOMAN_GPU=required DRAGOMAN_FIGURES=.build/gpu/tests.json $(GPU_PYTHON) -m pytest -m gpu tests

bench-gpu:  ## speed on a GPU, beside torch, Transformers and CTranslate2; .build/gpu/bench.json and bench.md
	$(GPU_PYTHON) benchmarks/gpu.py --out .build/gpu

soak: setup  ## 200,000 requests and faults of all kinds on one server, whose memory may not grow; .build/soak.json
	$(BIN)/python tests/faults/soak.py --requests 200000 --out .build/soak.json

demo: setup  ## the whole way in miniature: train, export, serve, translate, load test
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python scripts/demo.py $(DEMO_FLAGS)

protos: setup  ## generate the gRPC stubs anew
	PATH="$(CURDIR)/$(BIN):$$PATH" sh scripts/generate_stubs.sh

lock:  ## pin anew what the images in docker/ install
	sh scripts/lock.sh

wheel-test: setup  ## serve from the built wheel, in an environment without torch
	$(BIN)/python scripts/wheel_test.py

bench: setup  ## compare with CTranslate2 and Transformers: CHECKPOINT, BUNDLE and TEXT say with what, OUT where to
	@test -n "$(CHECKPOINT)" -a -n "$(BUNDLE)" -a -n "$(TEXT)" || \
		{ echo "make bench CHECKPOINT=checkpoints/en-de BUNDLE=models/en-de/1 TEXT=test.en [OUT=bench]" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/compare.py --checkpoint $(CHECKPOINT) --bundle $(BUNDLE) --source $(TEXT) --out $(OUT)
	$(BIN)/python benchmarks/online.py --checkpoint $(CHECKPOINT) --bundle $(BUNDLE) --corpus $(OUT)/sentences.txt \
		--out $(OUT)/online.json

clean:  ## delete what was built
	rm -rf $(VENV) .build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
