# The whole interface: `make reproduce PAPER=mixmatch` and `make test`. Everything runs in .venv, made on first use.

PYTHON ?= python3
VENV   ?= .venv
RUN     = $(VENV)/bin/python -m
# Where pip finds torch. Empty: pip's own index (CUDA builds on Linux). `make TORCH_INDEX=https://download.pytorch.org/whl/cpu`
# takes the small CPU build where there is no GPU.
TORCH_INDEX ?=

PRESET      ?= quick
FLAGS        = $(if $(SEEDS),--seeds $(SEEDS)) $(if $(METHODS),--methods $(METHODS)) \
               $(if $(EXPERIMENTS),--experiments $(EXPERIMENTS)) $(if $(DEVICE),--device $(DEVICE)) \
               $(if $(ENGINE),--engine $(ENGINE)) $(if $(OUT),--out $(OUT)) $(ARGS)

.PHONY: help reproduce report record verify bench list new-paper test lint clean env
.DEFAULT_GOAL := help

help:  ## this list
	@echo "make reproduce PAPER=mixmatch [PRESET=quick SEEDS= METHODS= EXPERIMENTS= DEVICE= ENGINE= OUT=]"
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1\t/'

reproduce: env  ## train, judge the claims and report
	@$(RUN) papers reproduce $(PAPER) --preset $(PRESET) $(FLAGS)

report: env  ## judge and draw again from the run folders, without training
	@$(RUN) papers report $(PAPER) --preset $(PRESET) $(FLAGS)

record: env  ## copy results into the paper's folder and redraw the READMEs
	@$(RUN) papers record $(PAPER) --preset $(PRESET) $(FLAGS)

verify: env  ## recompute every verdict and table from the committed results
	@$(RUN) papers verify $(PAPER)

bench: env  ## measure speed against the plain path
	@$(RUN) papers bench $(PAPER) $(FLAGS)

list: env  ## papers, presets and what they cost
	@$(RUN) papers list

new-paper: env  ## write the folder of a new paper, ready to run: NAME=demo
	@$(RUN) papers new-paper "$(NAME)"

test: env  ## the tests
	@$(RUN) pytest -n $(or $(JOBS),2) --dist loadfile $(ARGS)

lint: env  ## ruff (rules and format), and mypy over common/
	@$(RUN) ruff check .
	@$(RUN) ruff format --check --quiet .
	@$(RUN) mypy

clean:  ## remove the environment and caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

env: $(VENV)/.ready

# torch goes in first and alone: asked for together with the rest, pip may take another build of it.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))' \
	  || { echo "error: $$($(PYTHON) --version) found, but Python 3.11 to 3.13 is needed: set PYTHON=python3.12 or such" >&2; exit 2; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "1/2 torch (the largest part of the download)"
	@$(RUN) pip install --disable-pip-version-check --progress-bar on --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@echo "2/2 the other libraries"
	@$(RUN) pip install --disable-pip-version-check --progress-bar on --constraint constraints.txt \
	  $$($(PYTHON) -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*[d.replace(" ", "") for d in sum(p["optional-dependencies"].values(), p["dependencies"]) if not d.startswith("torch>")])')
	@touch $@
