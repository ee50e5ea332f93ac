# What a developer types. Every target makes the environment that it needs; nothing but Python 3.11+ is expected.

SHELL      := /bin/bash
VENV       ?= .venv
BIN        := $(VENV)/bin
RUN        ?= runs/demo
JOBS       ?= 2
PEERS_ENV  ?= $(HOME)/.cache/morphogen-peers
DATA       := $(or $(MORPHOGEN_DATA),$(wildcard ../shared/data))
TORCH      := $(shell grep '^torch==' constraints.txt)

# The first Python on PATH that is new enough; PYTHON=... chooses another.
PYTHON     ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
                "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)

PIP        := $(BIN)/python -m pip --disable-pip-version-check
INSTALL     = $(PIP) install -qq -c constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
ENV        := PEERS_ENV=$(PEERS_ENV) $(if $(DATA),MORPHOGEN_DATA=$(abspath $(DATA)))
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help demo test slow check bench bench-smoke bench-env evidence docs lock audit release clean
.DELETE_ON_ERROR:

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo "Variables: PYTHON=python3.12 (which Python makes $(VENV)), RUN=$(RUN) (where the demo trains),"
	@echo "  JOBS=$(JOBS) (test processes), MORPHOGEN_DATA=FOLDER (real data sets), W=NAME RECORD=1 (which benchmark, recorded),"
	@echo "  TORCH_INDEX=https://download.pytorch.org/whl/cpu (a package index of CPU builds: saves gigabytes on Linux),"
	@echo "  TORCH_LINKS=FOLDER_OR_PAGE (of CPU builds to lock beside the others)."

# ---- environments: each stamp is remade when the wanted packages change --------------------------------------------

$(BIN)/python:
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "morphogen needs Python 3.11 or newer, and $(or $(PYTHON),no python3 on your PATH) is not: install one, or say which with PYTHON=/path/to/python3.12" >&2; \
	  exit 1; }
	@"$(PYTHON)" -m venv $(VENV) || { \
	  echo "$(PYTHON) could not make a virtual environment: install its venv module (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	  rm -rf $(VENV); exit 1; }

$(VENV)/run.stamp: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing morphogen into $(VENV) (a few minutes the first time) ..."
	@$(PIP) install -qq --upgrade -c constraints.txt pip
	@$(INSTALL) --build-constraint constraints.txt $(TORCH) -e .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	@echo "Installing what the tests need into $(VENV) ..."
	@$(INSTALL) $(TORCH) --group test
	@touch $@

$(VENV)/lint.stamp: $(VENV)/test.stamp
	@echo "Installing the linters into $(VENV) ..."
	@$(INSTALL) $(TORCH) --group lint
	@touch $@

$(VENV)/release.stamp: $(VENV)/run.stamp
	@echo "Installing what a release is made with into $(VENV) ..."
	@$(INSTALL) $(TORCH) --group release
	@touch $@

# ---- what a newcomer does ------------------------------------------------------------------------------------------

demo: $(VENV)/run.stamp ## train diffusion on real digits in about three minutes, and measure its samples
	@$(ENV) $(BIN)/morphogen train digits-diffusion --run $(RUN)
	@$(ENV) $(BIN)/morphogen evaluate $(RUN)

test: $(VENV)/test.stamp ## the whole test suite (without its longest proofs)
	@$(ENV) $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS)

slow: $(VENV)/test.stamp ## the longest proofs, before an issue is called resolved
	@$(ENV) $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) -m slow

check: $(VENV)/lint.stamp ## style, types, and that wheel and sdist hold what they must
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/python tools/packages.py

docs: $(VENV)/test.stamp ## every link of every page leads somewhere, and every Python block runs
	@$(ENV) $(BIN)/python tools/pages.py

evidence: $(VENV)/test.stamp ## recompute the quick promises of docs/evidence.md, and check the recorded rest
	@$(ENV) $(BIN)/python tools/evidence.py docs/evidence.md

# ---- the scoreboard ------------------------------------------------------------------------------------------------

bench: $(VENV)/test.stamp ## one benchmark, ours and peers interleaved: make bench W=overhead_mlp (without W: their list)
	@$(ENV) $(BIN)/python benchmarks/harness.py $(or $(W),--list) $(if $(RECORD),--record)

bench-smoke: $(VENV)/test.stamp ## every benchmark of ours for a moment: that it runs and computes the same as its peer
	@$(ENV) $(BIN)/python benchmarks/harness.py --smoke

bench-env: $(VENV)/run.stamp ## the peers' own environment, in PEERS_ENV (about 3 GB)
	@bash benchmarks/peers/install.sh $(PEERS_ENV) $(BIN)/python

# ---- what is shipped (docs/releases.md) ---------------------------------------------------------------------------

LOCK = $(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes -c constraints.txt pyproject.toml

lock: $(VENV)/release.stamp ## pin every file of what a release installs by its SHA-256 (requirements.txt; -all.txt with extras)
	@$(LOCK) --custom-compile-command "make lock" -o requirements.txt
	@$(LOCK) --custom-compile-command "make lock" --all-extras -o requirements-all.txt
	@$(if $(TORCH_LINKS),$(LOCK) --custom-compile-command "make lock TORCH_LINKS=..." --find-links $(TORCH_LINKS) -o requirements-cpu.txt)

audit: $(VENV)/release.stamp ## ask PyPI for known vulnerabilities of what is locked; fails where there is one, or no answer
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --progress-spinner off -r requirements-all.txt

release: $(VENV)/release.stamp ## wheel and sdist (built twice, same bytes), their SHA-256 and the SBOM, in dist/
	@rm -rf dist
	@$(BIN)/python tools/packages.py dist
	@$(BIN)/python tools/sbom.py requirements.txt requirements-all.txt dist/morphogen.cdx.json

clean: ## remove the environment, build products and caches; runs/ is kept
	@rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
