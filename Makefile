# make demo   the whole method on the built-in corpus, about ten minutes on two cores
# make test   tests, lint and types
# make gemma  a few steps of both stages on the real Gemma 3 270M
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/tiny

.PHONY: demo test lint gemma bench clean

demo: $(VENV)/run.stamp
	$(BIN)/python train.py --config=configs/tiny.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

bench: $(VENV)/run.stamp
	$(BIN)/python benchmarks/effect.py --workdir=runs/effect

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev.stamp: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV) runs
