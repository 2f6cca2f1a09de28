# Each target makes its own environment in .venv when that is missing or out of date.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
PACKAGES := kedit_core plugins/kedit-lab/kedit_lab plugins/kedit-locate/kedit_locate plugins/kedit-rome/kedit_rome \
            plugins/kedit-memit/kedit_memit plugins/kedit-memory/kedit_memory plugins/kedit-pmet/kedit_pmet \
            plugins/kedit-serac/kedit_serac plugins/kedit-wise/kedit_wise contrib/kedit-atlas/kedit_atlas \
            contrib/kedit-lm-eval/kedit_lm_eval

.PHONY: demo test lint docs bench atlas clean

demo: $(INSTALLED)
	@$(BIN)/python -m kedit_atlas.demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(PACKAGES)
	$(BIN)/mypy -p my_package -p kedit_grace
	$(BIN)/python docs/generate.py --check

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py

bench: $(INSTALLED)
	$(BIN)/python tests/benchmarks/rome_restored.py --model atlas:gpt2
	$(BIN)/python tests/benchmarks/rome_restored.py --model atlas:llama
	$(BIN)/python tests/benchmarks/locate_on_atlas.py atlas:gpt2 mass
	$(BIN)/python tests/benchmarks/locate_on_atlas.py atlas:llama mass
	$(BIN)/python tests/benchmarks/value_engine.py
	$(BIN)/python tests/benchmarks/value_engine.py --shape gpt2-small --edits 40 --plain 2
	$(BIN)/python tests/benchmarks/value_search.py
	$(BIN)/python tests/benchmarks/undo.py
	$(BIN)/python tests/benchmarks/list_methods.py
	$(BIN)/python tests/benchmarks/judging.py

atlas: $(INSTALLED)
	$(BIN)/python -m kedit_atlas.train

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache

$(INSTALLED): requirements-dev.txt constraints.txt pyproject.toml $(wildcard plugins/*/pyproject.toml contrib/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kedit needs Python 3.11 or newer; try make PYTHON=python3.12")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv; the first time this takes a minute or two"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
