# Two commands for a fresh machine; each does all its own set-up.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-fast lint docs clean

PYTEST := $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist worksteal

quickstart: $(VENV)/installed  ## the main job on the embedded default: no download, no GPU, about a minute once installed
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/installed  ## every test but the slow ones
	$(PYTEST)

test-fast: $(VENV)/installed  ## for while you work: the tests that take a moment each, in under a minute
	$(PYTEST) -m "not slow and not long"

lint: $(VENV)/installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/installed  ## the documentation as a site, in site/; nothing is fetched while it is built
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Nothing is compiled: few of 22,000 files are ever imported, and Python compiles those itself, once if it may.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
EVERYTHING := --constraint constraints.txt --editable '.[dev]'
# uv unpacks several wheels at once, in a third of the time; 180 s are for slow indexes. pip takes over where uv fails, as
# where only pip's own settings name the index.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --constraint constraints.txt uv && UV_HTTP_TIMEOUT=180 $(BIN)/uv pip install --quiet --python $(BIN)/python $(EVERYTHING) || $(PIP) $(EVERYTHING)
	touch $@

clean:
	rm -rf $(VENV) .quickstart site
