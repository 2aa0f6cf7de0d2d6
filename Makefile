# Two commands matter: `make book` and `make test`. Both set up .venv first, once.
PROFILE ?= smoke
JOBS    ?= 2
DEVICE  ?= auto
# The first Python that is new enough; the set-up says so when there is none.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON  ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
             $$p -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$p && break; done)

BIN   := .venv/bin
# The stamp's name says what was installed: another pyproject, constraints or folder asks for a new set-up.
STAMP := .venv/.ready-$(shell (pwd; cat pyproject.toml constraints.txt) | cksum | tr -d ' ')
# A .venv is as good as none when its Python is gone, when it was moved here, or when its set-up was cut off.
SOUND := grep -qsF "$(CURDIR)/.venv/" $(BIN)/pip && $(BIN)/python -c '' 2>/dev/null && [ ! -e .venv/.unfinished ]
_     := $(shell { $(SOUND); } || rm -f .venv/.ready-*)
# One thread for each process: xdist and `gleak run --jobs` already use the cores.
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest

export TQDM_DISABLE := 1
# Without bytecode on disk each process takes ten seconds to start, not three.
unexport PYTHONDONTWRITEBYTECODE
export PYDEVD_DISABLE_FILE_VALIDATION := 1
.DELETE_ON_ERROR:
.PHONY: help setup book test lint refresh lab bench lock clean

help:            ## list the targets
	@grep -hE '^[a-z]+:.*##' Makefile | sed -E 's/^([a-z]+):[^#]*##/  make \1\t/' | expand -t 18
	@echo '  e.g. make book PROFILE=quick JOBS=4 DEVICE=cuda'

setup: $(STAMP)  ## make .venv with the exact versions of constraints.txt (safe to run again)

$(STAMP):
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' || { echo \
	  'gleak needs Python 3.11 or newer: install one, or name it: make $(or $(MAKECMDGOALS),setup) PYTHON=/path/to/python3.12' >&2; exit 1; }
	@{ $(SOUND); } || $(PYTHON) -m venv --clear .venv >/dev/null || { echo \
	  '$(PYTHON) cannot make a virtual environment: install its venv module (Debian: apt-get install python3-venv)' >&2; exit 1; }
	@echo 'setting up .venv (PyTorch and its friends: about a minute with uv, several without)'
	@touch .venv/.unfinished
	@{ $(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5' 2>/dev/null \
	   && VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv pip install --quiet -c constraints.txt -e '.[book,test,fast,text]'; } \
	|| { echo 'uv did not manage: once more with pip' >&2; \
	     $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[book,test,fast,text]'; } \
	|| { echo 'the set-up did not finish: see the line above, then run the same command again' >&2; exit 1; }
	@$(BIN)/python -c 'import torch, torchvision, gleak_core'
	@rm -f .venv/.unfinished .venv/.ready-*; touch $@

book: $(STAMP)   ## execute what is stale, build the book, say where it is
	@$(BIN)/gleak book --profile $(PROFILE) --jobs $(JOBS) --device $(DEVICE)

test: $(STAMP)   ## every test: library, notebooks, the built book in a browser
	$(PYTEST) -n $(JOBS) --dist loadscope --no-loadscope-reorder

lint: $(STAMP)   ## ruff (style and format), pyright (types)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

refresh: $(STAMP) ## run the chapters in place: the committed outputs that nbval compares with
	@$(BIN)/gleak refresh --jobs $(JOBS)

lab: $(STAMP)    ## build the lab's page anew: the same bytes, unless its sources changed
	@VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv pip install --quiet -c constraints.txt -e '.[lab]' \
	|| echo 'the zig compiler could not be installed: the committed kernels are taken' >&2
	@$(BIN)/gleak lab

bench: $(STAMP)  ## speed of the attacks against the textbook loop
	@$(BIN)/python tests/benchmarks/run.py

lock: $(STAMP)   ## write constraints.txt anew from pyproject.toml
	@VIRTUAL_ENV="$(CURDIR)/.venv" $(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --all-extras \
	  --upgrade pyproject.toml -o constraints.txt
	@echo 'constraints.txt is new: run make test, then commit it'

clean:           ## remove what was built (_build); .venv stays
	rm -rf _build
