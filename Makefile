# `make` alone lists what there is. A machine with Python >= 3.10, a C++ compiler and make suffices:
# every target makes its own environment in .venv, from whatever package index pip is set up for.

PYTHON ?= python3
TORCH ?= torch==2.13.0
# The release that this torch's CUDA builds bring along; GPU kernels are interpreted and compiled with it.
TRITON ?= triton==3.7.1
# Other people's layers, which tests compare with ours.
FUXICTR := fuxictr>=2.3.10
EXTRAS := train,bench,analyze,test,dev

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc kernels -type f \
  \( -name '*.cpp' -o -name '*.cu' -o -name '*.h' -o -name '*.py' \) -not -path '*/tests/*')
CXX_FILES := $(shell find csrc -name '*.cpp' -o -name '*.cu' -o -name '*.h')

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench gpu-check sanitize clean

help: ## show this list
	@echo "mtlfast: fused kernels and models for multi-task recommendation"
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: PYTHON=$(PYTHON) (>= 3.10)  TORCH=$(TORCH)  TRITON=$(TRITON)  TESTS=tests/ops/...  ARGS='-k ragged'"
	@echo "A demo on your own event log, folder/deskdrop/events.parquet: make demo MTLFAST_DATA=folder"

install: $(READY) ## make .venv: torch, the compiled package, every tool

demo: $(READY) ## train DTRN for a minute, then compare fused with reference: parity, speed, memory
	$(BIN)/python -m mtlfast demo $(ARGS)

test: $(READY) ## all tests; one folder: make test TESTS=tests/ops ARGS='-k empty'
	$(BIN)/python -m pytest -n auto --maxprocesses=8 --dist=worksteal $(TESTS) $(ARGS)

lint: $(READY) ## ruff, mypy, clang-format: report, change nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(READY) ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(READY) ## time the ops against every baseline; table, JSON, CSV and plots
	$(BIN)/python -m mtlfast bench $(ARGS)

# Makes no environment: a machine with a GPU brings torch, triton, nvcc, ninja, pybind11 and pytest.
gpu-check: ## on a machine with a GPU: check and time every GPU kernel, in under nine minutes
	$(PYTHON) -m benchmarks.gpu $(ARGS)

sanitize: $(READY) ## C++ tests under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/python csrc/native_build.py sanitize $(ARGS)

clean: ## remove .venv, everything built, and all caches
	rm -rf $(VENV) build dist *.egg-info mtlfast/lib mtlfast/_C.*.so
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than Python 3.10; name another one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing $(TORCH) and $(TRITON) ..."
	$(BIN)/python -m pip install --quiet $(TORCH) $(TRITON) numpy
	@touch $@

# Installed in place (-e): Python files take effect at once, changed C++ files are compiled by the
# next make.
$(READY): $(VENV)/.torch $(BUILD_INPUTS)
	@echo "Building mtlfast and installing its tools ..."
	@# The warning is about folders of the same name beside an editable package; here it is the package.
	PYTHONWARNINGS=ignore:Editable $(BIN)/python -m pip install --quiet -e '.[$(EXTRAS)]'
	@# Tests load single files of it, so it comes without its dependencies (ray, polars, ...).
	@$(BIN)/python -m pip install --quiet --no-deps '$(FUXICTR)' || \
	  echo "No FuxiCTR here: the tests that compare with it will be skipped."
	@touch $@
