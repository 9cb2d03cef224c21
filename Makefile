# Every target sets up what it needs on a machine that has Python 3.11 (with venv) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help demo serve test test-all check bench derive clean
.DEFAULT_GOAL := help

help:
	@echo "make demo      the main job from clone to pictures: ingest, clip, NDVI, zonal statistics, report"
	@echo "make serve     the same world, kept running, with its address and API key printed"
	@echo "make test      the whole suite (SQLite, and PostgreSQL where it is installed)"
	@echo "make test-all  the suite and the slow tests"
	@echo "make check     format, lint, types, import direction, house rules"
	@echo "make bench     our speed against the peers'"
	@echo "make derive    refresh everything that is derived from the code: contracts, reference pages"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "eorouter needs Python 3.11 or newer; '$(PYTHON)' is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV)

$(VENV)/server: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing eorouter[server] into $(VENV) (about a minute the first time) ..."
	@$(PIP) --editable '.[server]'
	@echo "Compiling the kernels for this machine (two minutes, once) ..."
	@$(BIN)/python -c 'import eorouter_kernels; eorouter_kernels.warm_up()'
	@touch $@

$(VENV)/test: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing eorouter[test] into $(VENV) (about a minute the first time) ..."
	@$(PIP) --editable '.[test]'
	@echo "Compiling the kernels for this machine (two minutes, once) ..."
	@$(BIN)/python -c 'import eorouter_kernels; eorouter_kernels.warm_up()'
	@touch $@ $(VENV)/server

$(VENV)/bench: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing eorouter[bench] into $(VENV) (about a minute the first time) ..."
	@$(PIP) --editable '.[bench]'
	@touch $@ $(VENV)/server

demo: $(VENV)/server
	@$(BIN)/eorouter demo $(ARGS)

serve: $(VENV)/server
	@$(BIN)/eorouter demo --keep-serving $(ARGS)

test: $(VENV)/test
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

test-all: $(VENV)/test $(VENV)/bench
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/basedpyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/house tests/contract

bench: $(VENV)/bench
	@$(BIN)/python -m benchmarks $(ARGS)

derive: $(VENV)/test
	@$(BIN)/eorouter derive --write

clean:
	@rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
