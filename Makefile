# make run PROMPT="slow solo piano in A minor, 80 bpm"   writes out.wav; the first time it creates the environment
VENV ?= .venv
# the exact versions to install; LOCK= takes the newest
LOCK ?= constraints.txt
# the build of PyTorch: cpu, cuda, or auto, which is cpu where there is no NVIDIA GPU and PyTorch's index can be reached
TORCH ?= auto
PROMPT ?= slow solo piano in A minor, 80 bpm
OUT ?= out.wav
WORKERS ?= 2
BENCH ?= musicgen-small
# how transformers is best run on such a machine, where that has been found out (benchmarks/compare --sweep)
SWEEP ?= $(lastword $(sort $(wildcard benchmarks/results/cpu-*/*-sweep/$(BENCH)-sweep.json)))
BENCH_OPTIONS ?= $(if $(SWEEP),--peer-from $(SWEEP))

# python3.11 where there is one, else the newest of those that fit, else whatever python3 is (it is checked below)
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
INSTALL = $(VENV)/bin/python scripts/install.py --torch "$(TORCH)" $(if $(LOCK),--lock "$(LOCK)")
export PROMPT OUT
export OMP_NUM_THREADS ?= 1

.PHONY: help run setup test test-slow test-latest check types policy format docs bench lock clean
.DEFAULT_GOAL := help

help: ## these lines
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## /make \1\t/' | expand -t 20

run: $(VENV)/.run ## a sentence in, music out: make run PROMPT="..." OUT=out.wav
	@env -u OMP_NUM_THREADS $(VENV)/bin/cadenza generate --quantize int8 --out "$$OUT" -- "$$PROMPT"

setup: $(VENV)/.dev ## the environment to work in, with tests and tools

test: $(VENV)/.dev ## every test but the slow ones
	$(VENV)/bin/pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.dev ## the slow ones
	$(VENV)/bin/pytest -m slow

test-latest: ## every test but the slow ones, with the newest versions of all packages, in .venv-latest
	rm -rf .venv-latest
	@$(MAKE) --no-print-directory VENV=.venv-latest LOCK= test

check: $(VENV)/.dev ## format, lint, types and policy tests, in under a minute
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target types policy

types: $(VENV)/.dev
	$(VENV)/bin/pyright

policy: $(VENV)/.dev
	$(VENV)/bin/pytest tests/policy

format: $(VENV)/.dev ## puts the code in the form that `check` wants
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

docs: $(VENV)/.dev ## draws the pictures of the docs anew
	$(VENV)/bin/python docs/draw.py

bench: $(VENV)/.dev ## how fast, beside transformers and the machine's own bound: make bench BENCH=musicgen-small
	@env -u OMP_NUM_THREADS $(VENV)/bin/python benchmarks/compare $(BENCH) $(BENCH_OPTIONS)

lock: | $(VENV)/bin/python ## writes the newest versions to constraints.txt (torch keeps its own)
	$(VENV)/bin/python scripts/lock.py

clean: ## removes the environments and what tools left behind
	rm -rf $(VENV) .venv-latest .pytest_cache .ruff_cache build dist

# The stamps are written last, so that what was interrupted is done again.
$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Cadenza needs Python 3.11 or newer; install it, or say which: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo "Creating the environment in $(VENV) (once; a few minutes)"
	@$(PYTHON) -m venv "$(VENV)" || { rm -rf "$(VENV)"; echo "venv failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }

$(VENV)/.run: pyproject.toml $(LOCK) | $(VENV)/bin/python
	@$(INSTALL) fast
	@touch $@

$(VENV)/.dev: pyproject.toml $(LOCK) | $(VENV)/bin/python
	@$(INSTALL) dev
	@touch $(VENV)/.run $@
