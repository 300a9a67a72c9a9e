# Everything starts from here: `make demo` and `make test` need Python 3.11 or newer, and nothing else.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-all lint types clean

demo: .venv/installed
	$(BIN)/rayssl pretrain demo-psl
	$(BIN)/rayssl pretrain demo-mgta
	$(BIN)/rayssl report demo-psl demo-mgta

test: .venv/installed-dev
	$(BIN)/python -m pytest -q

test-all: .venv/installed-dev
	$(BIN)/python -m pytest -q -m "not gpu or gpu"

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed-dev
	$(BIN)/mypy

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "rayssl needs Python 3.11 or newer; name it with: make PYTHON=python3.11"; exit 2; }
	@echo "installing rayssl and what it needs into .venv: about 6 GB, some minutes, once"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .ruff_cache .mypy_cache
