# Each target prepares .venv by itself when it is missing, older than requirements.lock or pyproject.toml, or was moved.
#
#   make PYTHON=/path/to/python3.12 ...      another Python than the first of 3.11, 3.12, 3.13, 3.14 on PATH
#   PIP_FIND_LINKS=folder make ...           wheels of a local folder first, a CPU build of torch for example
#   UV_TORCH_BACKEND=cpu make ...            torch without its CUDA packages, from PyTorch's own index

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

# The stamp holds the folder it was made in: scripts of a moved .venv still point to the old place.
MADE_IN := $(shell cat $(STAMP) 2>/dev/null)
ifneq ($(MADE_IN),$(CURDIR))
.PHONY: $(STAMP)
endif

.PHONY: help run study lab test lint index results bench conformance peers lock clean
.DEFAULT_GOAL := help

help:
	@echo "make run          the whole pipeline on the embedded world, then a report; finished stages are not repeated"
	@echo "make study        the studies of KL budgets and of overoptimization, then a report (under an hour on two cores)"
	@echo "make lab          JupyterLab on notebooks/"
	@echo "make test         every test"
	@echo "make lint         style, formatting and the layer rule"
	@echo "make index        the table of methods in the README, made of the tables in the code"
	@echo "make results      the tables of notebooks/RESULTS.md, made of what was run here"
	@echo "make bench        speed and memory beside TRL and model.generate, one table (about an hour)"
	@echo "make conformance  the numbers that tests take from TRL, made again by TRL and compared"
	@echo "make peers        installs what bench and conformance compare with into .peers"
	@echo "make lock         writes requirements.lock after a dependency changed in pyproject.toml"
	@echo "make clean        removes caches and build outputs; never runs/ and the labels in it"

run: $(STAMP)
	@$(BIN)/workbench run tour

study: $(STAMP)
	@$(BIN)/workbench run study

# Outputs of notebooks stay in the files and out of git: what git sees is what an editor changed.
lab: $(STAMP)
	@if git rev-parse >/dev/null 2>&1; then \
	  git config filter.clean-notebook.clean "'$(CURDIR)/$(BIN)/python' -m workbench.pipeline.clean_notebook"; \
	fi
	@echo "Opening JupyterLab on notebooks/ (Ctrl-C twice to stop)"
	@$(BIN)/python -m jupyterlab --notebook-dir=notebooks \
	  --FileContentsManager.post_save_hook=workbench.pipeline.clean_notebook.after_saving

# Texts are UTF-8 whatever the locale, as for the command. One torch thread per worker: they do not wait for each other's.
# A file's tests stay in one worker, so that what they share is made once; tests/conftest.py puts the longest first.
test: $(STAMP)
	@PYTHONUTF8=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/lint-imports --no-logo

# The README's table of methods: paper, formula, tests, notebook.
index: $(STAMP)
	@$(BIN)/python tests/paper_index.py

# Tables of runs that are in runs/; those of others stay as they are.
results: $(STAMP)
	@$(BIN)/python tests/results_page.py

# Oracles of tests/oracles, made again with the libraries they come from.
conformance: $(STAMP) peers
	@$(BIN)/python tests/conformance/run.py

# Speed beside the same peers; BENCH="--models llama-128x4 --rounds 3" asks for less.
bench: $(STAMP) peers
	@$(BIN)/python tests/bench/run.py $(BENCH)

PEERS := trl-1.12.0 trl-1.16.0
peers: $(PEERS:%=.peers/%/.installed)

# Each in an environment of its own, with the torch and transformers of requirements.lock.
.peers/trl-%/.installed: requirements.lock | $(STAMP)
	@echo "Installing TRL $* into .peers/trl-$* (a minute with uv, some minutes with pip)"
	@$(BIN)/python -m venv --clear .peers/trl-$*
	@$(settings_from_pip); \
	if $(BIN)/python -m uv pip install -q --python .peers/trl-$*/bin/python -c requirements.lock trl==$*; then :; else \
	  echo "uv did not succeed: installing the same versions with pip"; \
	  .peers/trl-$*/bin/python -m pip install -qq --disable-pip-version-check -c requirements.lock trl==$*; \
	fi
	@touch $@

# For every platform and Python at once, keeping the versions that are already there. torch stays at the version whose
# numbers the tests know, and its CUDA packages are left to torch itself: it pins them, and only on Linux.
LOCKED_TORCH := torch==2.13.0
lock: $(STAMP)
	@echo "Resolving pyproject.toml"
	@cp requirements.lock resolved.part
	@$(BIN)/python -m uv pip compile pyproject.toml --extra dev --extra lora --extra dask -P $(LOCKED_TORCH) --quiet \
	  --universal --python-version 3.11 --no-header --annotation-style line -o resolved.part
	@{ echo "# Exact versions that make installs, for every platform. Written by make lock from pyproject.toml."; \
	  grep -vE '^(#|nvidia-|cuda-|triton)' resolved.part; } > requirements.part
	@rm resolved.part
	@if cmp -s requirements.part requirements.lock; then rm requirements.part; else mv requirements.part requirements.lock; fi
	@echo "requirements.lock: $$(grep -c == requirements.lock) packages"

clean:
	@echo "Removing caches and build outputs; runs/ with its labels and .peers stay, .venv stays and is checked next time"
	@rm -rf $(STAMP) .pytest_cache .ruff_cache .import_linter_cache build dist *.egg-info *.part
	@find workbench tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +

# uv reads no pip configuration: $(call from_pip,UV_VARIABLE,PIP_VARIABLE,pip-option) hands one setting over.
from_pip = value="$${$(1):-$${$(2):-$$($(PIP) config get global.$(3) 2>/dev/null)}}"; \
	if [ -n "$$value" ]; then export $(1)="$$value"; fi
settings_from_pip = $(call from_pip,UV_FIND_LINKS,PIP_FIND_LINKS,find-links); \
	$(call from_pip,UV_DEFAULT_INDEX,PIP_INDEX_URL,index-url); \
	$(call from_pip,SSL_CERT_FILE,PIP_CERT,cert)

# Compiled once here: where Python may not write bytecode itself, every kernel would compile it all again.
$(STAMP): requirements.lock pyproject.toml
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -c '' || { [ -s $(STAMP) ] && [ "$(MADE_IN)" != "$(CURDIR)" ]; }; then \
	  for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 none; do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  done; \
	  if [ "$$python" = none ]; then \
	    echo "No Python 3.11 or newer with its venv module was found: install one, or run make PYTHON=/path/to/python." >&2; \
	    exit 1; \
	  fi; \
	  echo "Making .venv with $$("$$python" --version)"; \
	  "$$python" -m venv --clear $(VENV); \
	fi
	@echo "Installing requirements.lock into .venv (under a minute with uv, some minutes with pip)"
	@$(settings_from_pip); \
	if $(PIP) install -qq uv \
	  && $(BIN)/python -m uv pip install -q --compile-bytecode --python $(BIN)/python -r requirements.lock \
	  && $(BIN)/python -m uv pip install -q --python $(BIN)/python --no-deps -e .; then :; \
	else \
	  echo "uv did not succeed: installing the same versions with pip"; \
	  $(PIP) install -qq -r requirements.lock && $(PIP) install -qq --no-deps -e .; \
	fi
	@printf '%s\n' "$(CURDIR)" > $(STAMP)
