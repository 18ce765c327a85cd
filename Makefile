# Every target is `python -m ...` lines; where there is no make, run those.
PYTHON ?= python3
BIN = .venv/bin

# Processes share the cores: one thread each. More threads than free cores wait for one another, many times as long as
# they compute; on a machine of your own with many cores, set OMP_NUM_THREADS higher.
export OMP_NUM_THREADS ?= 1
# A third of collecting the tests is compiling them.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo benchmark test campaign reliability check types fast bench

setup: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	@echo "installing PyTorch and the rest into .venv: some minutes"
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[test,cnn,minilm,fast,lmdb]"
	touch $@

demo: .venv/ready
	$(BIN)/diptych demo

# Every system trained and scored on Flickr8k, in one table; resumes where it stopped: see `diptych benchmark --help`.
benchmark: .venv/ready
	$(BIN)/diptych benchmark --data $(DIPTYCH_DATA)/flickr8k $(BENCHMARK)

test: .venv/ready
	$(BIN)/python -m pytest -n 2

# Thousands of damaged inputs for every reader, and runs killed at random moments; the counts go to build/campaign.
campaign: .venv/ready
	rm -rf build/campaign && mkdir -p build/campaign
	DIPTYCH_CAMPAIGN=$(CURDIR)/build/campaign $(BIN)/python -m pytest -n 2 -m campaign tests/campaign

reliability: .venv/ready  # the page about the last campaign
	$(BIN)/python tests/campaign/reliability.py build/campaign docs/reliability.md

check: .venv/ready
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(MAKE) -j2 types fast

types: .venv/ready
	$(BIN)/python -m pyright

fast: .venv/ready  # in one process: a second one spends as long on collecting and warming up as it saves
	$(BIN)/python -m pytest -p no:xdist -m "not slow"

# Beside named peers, in half an hour; options by BENCH="--rounds 3". Their environment is their own: a torchvision for
# another PyTorch breaks tests.
bench: .venv-bench/ready
	.venv-bench/bin/python -m bench.speed $(BENCH)
	.venv-bench/bin/python -m bench.result_pages

.venv-bench/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/python -m pip install -q -c constraints.txt -e ".[bench]"
	touch $@
