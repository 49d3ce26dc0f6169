PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: compare test slow notebooks table format clean

compare: .venv/installed       ## the main job: train the zoo, run the attacks, print the table
	$(BIN)/glasslab compare $(ARGS)

test: .venv/installed-dev      ## lint, format, types, the suite without what is slow, notebooks, the README's tables
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto -m "not slow" $(ARGS)
	$(MAKE) notebooks
	$(BIN)/python -m benchmark.readme --check

slow: .venv/installed-dev      ## the tests that `make test` leaves out
	$(BIN)/pytest -m slow $(ARGS)

notebooks: .venv/installed-dev
	$(BIN)/pytest -n auto --nbmake --nbmake-timeout=900 notebooks

table: .venv/installed-dev     ## rebuild the README's tables from benchmark/results
	$(BIN)/python -m benchmark.readme

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@ .venv/installed

clean:
	rm -rf .venv build runs zoo notebooks/runs notebooks/zoo .pytest_cache .mypy_cache .ruff_cache
