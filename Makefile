# Everything starts here: `make help`. Each target sets up what it needs, on a fresh machine too.
#   make train ARGS="task=cartpole_swingup seed=3"

PYTHON ?= python3
VENV ?= .venv
# Where torch comes from, if not from pip's usual index: the CPU build is https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
ARGS ?=
# Processes that share the tests, file by file; each has one thread and takes up to 5 GB. 0: all in one
WORKERS ?= 2

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install -qq --constraint constraints.txt
REQUIREMENTS := pyproject.toml constraints.txt
RUNTIME := $(VENV)/.runtime-is-installed
DEV := $(VENV)/.dev-is-installed

.DEFAULT_GOAL := help
.PHONY: help setup train test check wheel bench clean

help:  ## show this list
	@echo "isaacrl: robot policies by reinforcement learning on many simulated robots at once"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  ARGS         what follows the verb: make train ARGS=\"task=cartpole_swingup\", make test ARGS=\"-k ppo\""
	@echo "  PYTHON       the Python to use, 3.11 or newer (now $(PYTHON))"
	@echo "  WORKERS      processes that share the tests, file by file (now $(WORKERS)); 0: all in this one"
	@echo "  TORCH_INDEX  another index for torch, at the first set-up: https://download.pytorch.org/whl/cpu is the CPU build"

setup: $(DEV)  ## install everything into .venv: what training needs, tests, linters

train: $(RUNTIME)  ## train a policy: make train ARGS="task=cartpole_swingup"
	@$(VENV)/bin/isaacrl train $(ARGS)

test: $(DEV)  ## run the tests
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: $(DEV)  ## lint and check types
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/pyright

wheel: $(DEV)  ## build the wheel into dist/
	@$(VENV)/bin/python -m pip --disable-pip-version-check wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	@ls dist/*.whl

# Not those that need a GPU, or another program's packages.
bench: $(DEV)  ## run the benchmarks of benchmarks/
	@set -e; for script in $(filter-out benchmarks/common.py benchmarks/time_to_solved.py benchmarks/versus_mjlab%,$(wildcard benchmarks/*.py)); do echo "== $$script"; $(VENV)/bin/python $$script $(ARGS); done

clean:  ## delete .venv, builds and caches; outputs/ stays
	@rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	@find isaacrl tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# --- set-up ---

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: $(PYTHON) is not a Python of version 3.11 or newer; name one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "error: $(PYTHON) cannot make a virtual environment (Debian: apt install python3-venv)" >&2; exit 1; }

$(RUNTIME): $(REQUIREMENTS) | $(VENV)/bin/python
	@echo "Setting up $(VENV) (once; the download is 0.5 GB, or several GB where torch comes with CUDA) ..."
ifneq ($(TORCH_INDEX),)
	@$(PIP) --no-deps --force-reinstall --index-url $(TORCH_INDEX) torch
endif
	@$(PIP) --editable .
	@touch $@

$(DEV): $(RUNTIME)
	@echo "Installing the tools for tests and checks ..."
	@$(PIP) --editable '.[dev]'
	@$(PIP) --no-deps mjlab || echo "mjlab is not installed: the tests that load its robots will be skipped"
	@touch $@
