# make train      virtual environment, install, train on the embedded data
# make test       virtual environment, install, lint, types, all tests
# make test-fast  the tests that are not marked slow: for daily work

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := genstab tests notebooks train.py
# On all cores, which pip does on one; some packages ship files that are not meant for this Python.
COMPILE = $(BIN)/python -m compileall -qq -j 0 $(VENV)/lib 2>/dev/null || true

.PHONY: train test pytest test-fast lint format clean

train: $(VENV)/installed
	$(BIN)/python train.py antialias=stable

test: $(VENV)/installed-dev
	$(MAKE) --jobs 2 lint pytest  # side by side: many tests wait for other programs

pytest: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(VENV)/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not slow'

lint: $(VENV)/installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable .
	$(COMPILE)
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	$(COMPILE)
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build dist outputs multirun .mypy_cache .pytest_cache .ruff_cache
