# The commands of the project. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Where the CPU build of torch is looked for when the machine has no NVIDIA GPU.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long check stubs lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## install everything into .venv, pinned by constraints.txt

$(VENV)/.ready: constraints.txt pyproject.toml sdk/pyproject.toml infra/setup.sh
	PYTHON=$(PYTHON) VENV=$(VENV) TORCH_INDEX=$(TORCH_INDEX) infra/setup.sh
	@touch $@

include infra/local/local.mk

demo: setup ## start the platform, train, fine-tune and try two small BLOOMs, leave it running
	@$(MAKE) --no-print-directory up
	$(BIN)/python -m examples.demo

test: setup ## the tests (about an hour on 2 slow cores)
	@infra/test_packages.sh
	$(BIN)/python -m pytest -m "not long and not gpu" tests

test-long: setup ## the tests that take longer
	$(BIN)/python -m pytest -m "long" tests

check: setup ## style, types, layering, contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bloom services ui sdk/anthesis infra examples benchmarks
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	.ci/stubs.sh .cache/stubs && diff -r -x __init__.py -x __pycache__ .cache/stubs/anthesis/v1 sdk/anthesis/v1
	.ci/sdk.sh

stubs: ## generate sdk/anthesis/v1 from protos/
	.ci/stubs.sh

lock: setup ## write constraints.txt from what .venv holds
	$(BIN)/pip freeze --all --exclude pip --exclude-editable | sed -E 's/\+cpu$$//' > constraints.txt

clean: ## remove the environments and caches (not the data folder)
	rm -rf .venv .venv-stubs .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
