# `make demo` and `make test` set everything up by themselves, in .venv.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --constraint constraints.txt

export HF_HUB_OFFLINE ?= 1

.PHONY: demo test experiments browser lint examples readme clean

demo: .venv/installed-demo
	$(BIN)/flatminima compare --recipe recipes/demo.yaml --out runs/demo
	for method in plain nso; do \
		$(BIN)/flatminima measure runs/demo/$$method/seed-0 --sigmas 0.02,0.05,0.1,0.2 --density --bound \
			> /dev/null || exit 1; \
	done
	$(BIN)/flatminima landscape runs/demo/plain/seed-0 runs/demo/nso/seed-0 > /dev/null
	$(BIN)/flatminima report runs/demo

test: .venv/installed-dev
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4

# The small version of every recipe: some minutes.
experiments: .venv/installed-dev
	$(BIN)/python -m pytest -m experiments

# For the tests of the report, which are skipped where there is none. As root, on Debian.
browser:
	command -v chromium || { apt-get update && apt-get install --yes --no-install-recommends chromium; }

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

examples: .venv/installed-dev
	for example in examples/*.py; do echo "== $$example"; $(BIN)/python $$example || exit 1; done

readme: .venv/installed-dev
	$(BIN)/python benchmarks/readme.py
	$(BIN)/python benchmarks/experiments.py page
	$(BIN)/python benchmarks/system.py page

clean:
	rm -rf .venv runs

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "flatminima needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv .venv

.venv/installed-demo: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[cli,report]'
	touch $@

.venv/installed-dev: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	touch $@ .venv/installed-demo
