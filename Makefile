# Two commands: `make demo` (train, compact, measure on the bundled MNIST) and `make test`.
# Both make the virtual environment they need, or reuse it; see tools/environment.py.
SHELL := /bin/bash
PYTHON ?= python3
RUN := .venv/bin/python
CLI := $(RUN) cli.py
QUICK := runs/quickstart

.PHONY: help demo docs test test-zoo-matrix environment lint types clean

help:
	@echo "make demo   train LeNet sparse on the bundled MNIST, compact it, measure it (3 minutes)"
	@echo "make lint, make types   ruff and mypy only"
	@echo "make environment   .venv and the dependencies below it, made by the others when it is missing"
	@echo "make dist   sdist and wheel of the last commit in dist/, built twice and compared"
	@echo "make test   lint, types and all tests"
	@echo "make test-zoo-matrix   compaction of all architectures of torchvision and timm that we test"
	@echo "make docs   build the documentation into docs/_build/html (a minute, no network)"
	@echo "make clean  remove .venv and runs/ (the shared dependency layer stays)"

environment:
	@$(PYTHON) tools/environment.py

demo: environment
	$(CLI) fit --config configs/quickstart.yaml
	$(CLI) compact $(QUICK)/checkpoints/last.ckpt
	$(CLI) benchmark $(QUICK)/checkpoints/last.ckpt --dense $(QUICK)/checkpoints/epoch-7.ckpt \
	    --compacted $(QUICK)/compact --title "LeNet, 10,000 MNIST images"
	$(CLI) report $(QUICK) --html
	@echo "Look at $(QUICK)/report.html, and at report.png, filters.png and norms.png beside it"

# One thread per worker: busy processes with two OpenMP threads each would crawl.
test: environment lint types
	OMP_NUM_THREADS=1 $(RUN) -m pytest --quiet --durations=15 --numprocesses=logical --maxprocesses=4 --dist=worksteal

# All architectures of tests/zoo_matrix.py instead of a few: about half an hour.
test-zoo-matrix: environment
	SSL_ZOO_MATRIX=1 OMP_NUM_THREADS=2 $(RUN) -m pytest --quiet --durations=15 tests/test_zoo_matrix.py tests/test_compaction_sizes.py

docs: environment
	$(RUN) -W ignore -m sphinx --quiet --fail-on-warning --keep-going -d docs/_build/doctrees docs docs/_build/html
	@echo "Open docs/_build/html/index.html"

lint: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

types: environment
	$(RUN) -m mypy

.PHONY: dist
dist: environment
	$(RUN) tools/dist.py

clean:
	rm -rf .venv runs docs/_build docs/generated
