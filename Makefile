# The front door: `make demo` and `make test` do all their own set-up on a fresh machine (python3, make, git; uv if it is there).
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Without compiled modules each start of Python compiles numpy and scipy anew, and the figures measure that.
export UV_COMPILE_BYTECODE := 1
unexport PYTHONDONTWRITEBYTECODE
UV := $(shell command -v uv 2>/dev/null)
ifdef UV
INSTALL = VIRTUAL_ENV=$(CURDIR)/$(VENV) uv pip install --quiet --constraint constraints.txt
else
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt
endif
# Most tests wait more than they compute: four processes keep two cores busy. `make test PARALLEL=` runs one after another.
PARALLEL ?= --numprocesses 4
# apt installs SLURM while pip installs Python packages; lint, types and layers run beside each other
MAKEFLAGS += --jobs=2
GROUPS := --group pyproject.toml:test --group pyproject.toml:lint

.PHONY: help demo packages test coverage unit integration slurm lint types layers check bench bench-tuning reference clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "ems needs Python 3.11 or newer: make PYTHON=python3.12 …"; exit 1; }
	@if [ -n "$(UV)" ]; then uv venv --quiet --seed --python $(PYTHON) $(VENV); else $(PYTHON) -m venv $(VENV); fi

$(VENV)/.demo: $(BIN)/python pyproject.toml constraints.txt
	@echo "installing ems into $(VENV)"
	@$(INSTALL) --editable '.[examples,plot]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo
	@echo "installing the tools that test ems"
	@if [ -z "$(UV)" ]; then $(BIN)/python -m pip install --quiet 'pip>=25.1'; fi
	@$(INSTALL) --editable '.[cluster,examples,plot,notebook,tensorboard]' $(GROUPS)
	@touch $@

packages:
	@bash tests/slurm/install.sh

demo: $(VENV)/.demo  ## sweep a real classifier on this machine, harvest and report
	@EMS=$(CURDIR)/$(BIN)/ems bash examples/demo.sh

test: $(VENV)/.dev packages  ## the whole test suite, real SLURM included (installs it where it is root on Debian)
	$(BIN)/pytest $(PARALLEL) $(ARGS)

coverage: $(VENV)/.dev packages  ## the same, and which lines no test runs
	$(BIN)/pytest $(PARALLEL) --cov --cov-report=term $(ARGS)

unit: $(VENV)/.dev  ## no network, no subprocess: under a minute
	$(BIN)/pytest tests/unit $(ARGS)

integration: $(VENV)/.dev  ## real git, SQLite, submitit and processes
	$(BIN)/pytest $(PARALLEL) tests/integration $(ARGS)

slurm: $(VENV)/.dev packages  ## a real SLURM cluster on this machine
	$(BIN)/pytest $(PARALLEL) tests/slurm $(ARGS)

lint: $(VENV)/.dev  ## ruff, and ansible-lint on the templates
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd templates && PATH="$(CURDIR)/$(BIN):$$PATH" ansible-lint --offline --profile production -q .

types: $(VENV)/.dev  ## mypy --strict
	$(BIN)/mypy

layers: $(VENV)/.dev  ## imports point down only
	$(BIN)/lint-imports

check: lint types layers  ## all three

bench: $(VENV)/.dev packages  ## measure, and write benchmarks/RESULTS.md
	@$(INSTALL) --group pyproject.toml:bench
	$(BIN)/python -m benchmarks $(ARGS)

# Peers in an environment of their own: they pin what ems does not. Two of them would bring half of a cloud along.
bench-tuning: $(BIN)/python  ## measure the search against its peers (hours), and write benchmarks/tuning/RESULTS.md
	@[ -x build/tuning/bin/python ] || $(PYTHON) -m venv build/tuning
	@build/tuning/bin/python -m pip install --quiet --constraint constraints.txt 'pip>=25.1' --editable .
	@build/tuning/bin/python -m pip install --quiet --constraint constraints.txt --group pyproject.toml:bench-tuning
	@build/tuning/bin/python -m pip install --quiet --constraint constraints.txt --no-deps syne-tune hpbandster
	build/tuning/bin/python -m benchmarks.tuning $(ARGS)

reference: $(VENV)/.dev  ## write the README's command reference anew
	$(BIN)/python tests/reference.py --write

clean:  ## remove what make made
	rm -rf $(VENV) build dist .coverage .mypy_cache .pytest_cache .ruff_cache .hypothesis
