# make demo    a virtual environment, the package, and a distilled DeiT on digits
# make test    the same environment with torch, and the whole test suite
# make quick   the tests that take two seconds at most
# make study   the study of docs/results.md: ARGS="--scale=micro --data_dir=..."
# make programs  what the train step compiles to for GPUs and TPUs that are not there:
#              ARGS="--targets=h100,v5e:4 --programs=train"
# make wheel   dist/deit_jax-*.whl, with the recipes and the digits' teacher inside
# make lint    what CI and pre-commit check
# make format  what ruff can fix

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# The compilers for GPUs and TPUs, out of the environment that trains.
PROGRAMS := $(abspath $(VENV))-programs
# The versions that were tested together; empty for the newest: make demo CONSTRAINTS=
CONSTRAINTS ?= constraints.txt
# The files of the tests are shared between the cores.
PARALLEL := -n auto --maxprocesses=4 --dist=loadfile
CONSTRAIN := $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: demo test quick study programs wheel lint format clean

demo: $(VENV)/.installed
	$(BIN)/python -m deit_jax.main --config=configs/deit.py:digits

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL)

quick: $(VENV)/.installed-test
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow"

study: $(VENV)/.installed-teacher
	$(BIN)/python -m experiments.study $(ARGS)

programs: $(PROGRAMS)/.installed
	PYTHONPATH=$(PROGRAMS):$$PYTHONPATH $(BIN)/python -m benchmarks.programs $(ARGS)

# build/ may hold modules that are gone.
wheel: $(VENV)/.installed
	rm -rf build
	$(PIP) wheel -q --no-deps --no-build-isolation -w dist .

lint: $(VENV)/.installed-lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

format: $(VENV)/.installed-lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) $(PROGRAMS) runs build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 11) and f"error: Python 3.11 or newer is needed, $(PYTHON) is {v}: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

# Each stamp is newer than what it was installed from, so that a second call does nothing.
$(VENV)/.installed: setup.py setup.cfg pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install -q -e . $(CONSTRAIN)
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install -q -e ".[test]" $(CONSTRAIN)
	touch $@

$(VENV)/.installed-teacher: $(VENV)/.installed
	$(PIP) install -q -e ".[teacher]" $(CONSTRAIN)
	touch $@

# torch brings the CUDA libraries.
$(PROGRAMS)/.installed: $(VENV)/.installed-test
	$(PIP) install -q --no-deps --upgrade --target=$(PROGRAMS) \
	    $$($(BIN)/python -m deit_jax.targets)
	touch $@

$(VENV)/.installed-lint: $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) install -q ruff $(CONSTRAIN)
	touch $@
