# Every target sets itself up: `make demo` and `make test` need Python 3.11 to 3.13, git and make alone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# Threads are capped so that tests, FAISS and BLAS do not fight over the cores.
export OMP_NUM_THREADS ?= 2

.PHONY: setup demo test test-unit test-slow test-faults check lint types layers prose docs docs-pages docs-assets fmt wheel bench bench-smoke bench-practice clean

setup: $(STAMP)

# The stamp is younger than what it was made from, so a changed pin installs again and nothing else does.
$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24" "setuptools>=77"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev,docs]"
	$(BIN)/python -m pip check
	@touch $(STAMP)

demo: setup
	$(BIN)/fsl-dist demo

# In random order, by a seed that the first lines name; `-p randomly --randomly-seed=SEED` repeats it.
UNIT := $(BIN)/python -m pytest tests/unit -p randomly -n auto --maxprocesses 4 --dist loadfile

# The unit tests first; what they leave out starts Ray clusters and services of its own, one at a time.
test: setup
	$(UNIT) -m "not integration and not slow and not gpu"
	$(BIN)/python -m pytest -m "(integration or faults) and not slow and not gpu"

test-unit: setup
	$(UNIT) -m "not integration and not heavy and not slow and not gpu"

test-slow: setup
	$(BIN)/python -m pytest -m slow

# 10,000 damaged files (64 in `make test`) 100 kills and 20 disks; FSL_DIST_FAULT_SEED draws others.
test-faults: export FSL_DIST_FAULTS ?= 10000
test-faults: export FSL_DIST_KILLS ?= 100
test-faults: export FSL_DIST_DISKS ?= 20
test-faults: setup
	nice -n 10 $(BIN)/python -m pytest -s -m faults tests/faults

# Tests are small and run in several processes: one thread each (tests/conftest.py).
test test-unit test-slow test-faults: export OMP_NUM_THREADS = 1

check: lint types layers prose docs

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: setup
	$(BIN)/mypy

layers: setup
	$(BIN)/lint-imports

# Words, long lines and long sentences of pages, docstrings, comments and messages (docs/prose.toml).
prose: setup
	$(BIN)/python docs/lint_prose.py

# The documentation site, in site/: a broken link, a missing page or a page outside the navigation of mkdocs.yml fails.
# Open site/index.html; the search works there too.
docs: export NO_MKDOCS_2_WARNING = 1
docs: setup
	$(BIN)/mkdocs build --strict

# The pages that are generated from the code. The tests of `make test` fail where one is out of date.
docs-pages: setup
	for name in configuration folders commands errors chart; do $(BIN)/python docs/make_$$name.py || exit 1; done
	$(BIN)/python -m benchmarks.page

# The pictures of the documentation, from a run on digits; needs Chromium.
# RUNS: results of `reproduce` and `sweep`, for docs/benchmarks.
docs-assets: setup
	$(BIN)/python docs/make_assets.py $(RUNS)

fmt: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# setuptools would take up what an older build left in build/.
wheel: setup
	rm -rf build dist
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .
	rm -rf build

# Everything in docs/benchmarks/index.md, measured on this machine, and the page.
bench: setup
	@mkdir -p benchmarks/results
	for name in stream episodes train workers start mining evaluate; do $(BIN)/python -m benchmarks.suite $$name --out benchmarks/results || exit 1; done
	$(BIN)/python -m benchmarks.page

# Everything in docs/benchmarks/practice.md: hours; finished runs are kept. FSL_DIST_TEST_DATA names the folder of the
# archives.
bench-practice: setup
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all,dev,docs,bench]"
	@mkdir -p benchmarks/results
	$(BIN)/python -m benchmarks.suite practice --out benchmarks/results
	$(BIN)/python -m benchmarks.page

# All benchmarks small: fails where a ratio became worse than its recorded bound.
bench-smoke: setup
	$(BIN)/python -m benchmarks.smoke

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
