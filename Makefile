# Two commands: `make demo` sets everything up, then trains and evaluates a real agent; `make test` sets
# everything up, then runs the tests.
# PYTHON: the interpreter that creates the virtual environment. TORCH: the torch to install; it is installed
# first, so that no dependency can choose another one.

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := train,textworld,gym,swe,kubernetes,plot,dev
OUT ?= runs/demo

.DEFAULT_GOAL := help
.PHONY: help setup system demo demo-swe test quick lint clean

help:
	@echo "make demo      set up, train a small agent on TextWorld games, evaluate it on games it has never seen"
	@echo "make demo-swe  set up, build the sandboxes' image, train a small agent to fix bugs in real packages"
	@echo "make test      set up, lint, type-check, run the tests (slow ones too)"
	@echo "make quick     set up, run the default tests only"
	@echo "make lint      ruff and mypy"
	@echo "make clean     remove the environment and build outputs (runs/ stays)"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(EXTRAS)]"
	@touch $@

demo: setup
	$(BIN)/agentrl train recipes/textworld_demo.py --out $(OUT)

system:
	sandboxes/scripts/setup.sh

demo-swe: setup system
	$(BIN)/agentrl images build
	$(BIN)/agentrl train recipes/swe_demo.py --out runs/swe-demo

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

quick: setup system
	$(BIN)/python -m pytest -m "not slow and not benchmark and not gpu"

test: lint system
	$(BIN)/python -m pytest -m "not benchmark and not gpu"

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
