# Thin: what is done stands in scripts/. Each target sets up what it needs, once.
#
#   make run [PROMPT="What is gravity?"]   chat with SmolLM2-135M-Instruct at 4 bits
#   make test                              all tests and the linters
#   make test-lm-eval                      those of lm-evaluation-harness, which is a large install
#   make lint                              the linters alone
#   make bench                             speed and memory of our models
#   make bench-peers                       the same beside llama.cpp, into docs/BENCHMARKS.md
#   make test-gpu                          the tests that need an NVIDIA GPU
#   make bench-gpu                         speed on one, into docs/BENCHMARKS.md
#   make quality TEXTS=FOLDER [ROWS="..."]  quality per bit beside llama.cpp, into docs/QUALITY.md
#   make clean                             removes what was built and converted; .venv stays
#
# PYTHON=python3.12 chooses the interpreter that .venv is made with.
SHELL := /bin/bash
PYTHON ?= python3
export PYTHON

MODEL := models-cache/SmolLM2-135M-Instruct.sq.gguf
STAMPS := .venv/stamps
C_SOURCES := $(wildcard runtime/*.[ch] runtime/*/*.[ch] runtime/*/*/*.[ch] models/*.[ch] convert/*.[ch] cuda/*)
SET_UP := scripts/setup.sh pyproject.toml constraints.txt CMakeLists.txt $(C_SOURCES)

# The prompt reaches sq-run in an environment variable, byte for byte: neither make nor a shell expands it.
run: export SQ_RUN_PROMPT := $(value PROMPT)
unexport PROMPT

.PHONY: run setup test test-gpu gpu-found test-lm-eval lint bench bench-peers bench-gpu quality clean

run: $(STAMPS)/run $(MODEL)
	@scripts/run.sh $(MODEL)

setup: $(STAMPS)/run

test: $(STAMPS)/test
	@scripts/test.sh

test-lm-eval: $(STAMPS)/lm-eval
	@.venv/bin/python -m pytest -q tests/python/separate/test_lm_eval.py

lint: $(STAMPS)/test
	@scripts/lint.sh

bench: $(STAMPS)/run
	@tests/bench/run.sh ours

bench-peers: $(STAMPS)/run
	@tests/bench/run.sh peers

gpu-found:
	@tests/bench/gpu.sh found

test-gpu:
	@tests/bench/gpu.sh test

bench-gpu: gpu-found $(STAMPS)/run $(MODEL)
	@tests/bench/gpu.sh bench

quality: $(STAMPS)/run
	@tests/quality/run.sh "$(TEXTS)" $(ROWS)

clean:
	@rm -rf build models-cache $(STAMPS) .pytest_cache .mypy_cache .ruff_cache

$(STAMPS)/run: $(SET_UP)
	@scripts/setup.sh run
	@touch $@

$(STAMPS)/test: $(SET_UP)
	@scripts/setup.sh test
	@touch $(STAMPS)/run $@

$(STAMPS)/lm-eval: $(SET_UP)
	@scripts/setup.sh lm-eval
	@touch $(STAMPS)/run $@

# A converted model stays when the converter changes; `make clean` removes it.
$(MODEL): | $(STAMPS)/run
	@scripts/model.sh $@
