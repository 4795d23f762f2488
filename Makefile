# On a machine with python3 (3.11 or newer) and make:
#   make demo    trains on a synthetic and a real problem, writes a table and pictures into demo/
#   make test    runs the tests
#   make bench   times jaxmdn beside its peers; writes into benchmarks/results/
# All create a virtual environment (.venv) first if there is none.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test bench test-slow lint format notebooks clean

demo: $(VENV)/.installed-cli
	$(BIN)/jaxmdn demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder $(ARGS)

# ARGS=--quick takes a minute, the whole suite far longer, on a machine that does nothing else.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Executes the notebooks in place, so that they are committed with their pictures.
notebooks: $(VENV)/.installed-test
	$(BIN)/python notebooks/execute.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "jaxmdn needs Python 3.11 or newer; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
