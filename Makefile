# make train    virtual environment, install, train on the embedded data
# make test     virtual environment, install, lint, types, all tests (three at a time: many wait for other programs)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := genstab tests notebooks train.py

.PHONY: train test lint format clean

train: $(VENV)/installed
	$(BIN)/python train.py antialias=stable

test: $(VENV)/installed-dev lint
	$(BIN)/python -m pytest -n 3 --dist worksteal

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
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(VENV)/installed $@

clean:
	rm -rf $(VENV) build dist outputs multirun .mypy_cache .pytest_cache .ruff_cache
