# Two commands for a newcomer: make quickstart, make test.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTED := $(VENV)/.installed-test

.PHONY: help install quickstart test test-vllm quick check bench bench-load bench-serving bench-sweep ablations clean
.DEFAULT_GOAL := help

help:  ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(TESTED): $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

install: $(STAMP)  ## make the virtual environment with the pinned versions

quickstart: $(STAMP)  ## practice data -> base model -> sweep -> winner -> deployed -> answers, then everything stopped
	$(BIN)/simpo quickstart

test: $(TESTED)  ## the whole suite
	$(BIN)/python -m pytest

test-vllm: $(TESTED)  ## the vllm engine, for real: makes its own virtual environment once, half a GB to download
	$(BIN)/python -m pytest -m vllm

quick: $(TESTED)  ## the tests that need no Ray and no server, under a minute
	$(BIN)/python -m pytest -m quick

check: $(TESTED)  ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: bench-load bench-serving  ## the benchmarks against their baselines, ratios in one run
	$(BIN)/python -m tests.bench

bench-load: $(TESTED)  ## the service under load on SQLite and PostgreSQL, half an hour; exit 1 below a gate
	$(BIN)/python -m tests.bench.load

bench-serving: $(TESTED)  ## the engines, the way through Serve, and adapters, half an hour of two idle cores; exit 1 below a bar
	$(BIN)/python -m tests.bench.serving

bench-sweep: $(TESTED)  ## a whole sweep against Ray Tune + TRL, 30 minutes of two idle cores; renews README's table
	$(BIN)/python -m tests.bench.sweep --write

ablations: $(TESTED)  ## the paper's ablations on the practice task, 25 minutes of one core; renews README's tables
	$(BIN)/python -m tests.bench.ablations --write

clean:  ## remove the virtual environment and what the quickstart made
	rm -rf $(VENV) .simpo
