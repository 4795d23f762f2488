# On a machine with python3 (3.11 or newer) and make:
#   make demo    trains on a synthetic and a real problem, writes a table and pictures into demo/
#   make test    runs the tests (test-optimised, test-version, test-nightly: more of them)
#   make docs    builds the site into docs/_build/html/
#   make bench   times jaxmdn beside its peers; writes into benchmarks/results/
# All create a virtual environment (.venv) first if there is none.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Else each of the processes that tests start would compile anew what it imports.
export PYTHONDONTWRITEBYTECODE =
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: demo docs test test-optimised test-version test-skpro test-nightly bench lint format notebooks clean

demo: $(VENV)/.installed-cli
	$(BIN)/jaxmdn demo

test: $(VENV)/.installed-test
	$(PYTEST) $(ARGS)

# The site. Nothing is executed: notebooks are shown as they are stored. Warnings are errors.
docs: $(VENV)/.installed-docs
	JAX_PLATFORMS=cpu $(BIN)/python -W ignore -m sphinx -q -W --keep-going docs docs/_build/html

# A few tests of everything, compiled as users compile.
test-optimised: $(VENV)/.installed-test
	JAXMDN_TEST_OPTIMIZED=1 $(PYTEST) -m optimised $(ARGS)

# What depends on the version of JAX: .ci/run runs it on the newest.
test-version: $(VENV)/.installed-test
	$(PYTEST) -m 'version and not nightly' $(ARGS)

# skpro needs an older pandas, so that its tests have an environment of their own.
test-skpro: $(VENV)-skpro/.installed-skpro
	$(VENV)-skpro/bin/python -m pytest -m "" -o max_programs=0 tests/estimator/test_skpro.py $(ARGS)

$(VENV)-skpro/.installed-skpro: pyproject.toml
	$(MAKE) VENV=$(VENV)-skpro $@

# Hours: every test with many examples, then on older processors' instructions and the newest JAX.
test-nightly:
	.ci/run nightly

# ARGS=--quick takes a minute, the whole suite far longer, on a machine that does nothing else.
bench: $(VENV)/.installed-bench
	$(BIN)/python -m benchmarks $(ARGS)

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

# For tests alone, Python compiles what is imported, when it is.
NO_COMPILE = $(if $(filter test dev,$*),--no-compile)

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(NO_COMPILE) --editable '.[$*]'
	@touch $@ $(if $(filter dev,$*),$(VENV)/.installed-test)

clean:
	rm -rf $(VENV) build docs/_build docs/reference *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
