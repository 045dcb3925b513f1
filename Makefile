# make demo    install and run the main job on sample_data/ with the embedded demo model
# make test    install and pass the tests
# make check   lint and types
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo

.PHONY: demo test test-all check bench clean install install-dev

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

# The damaged picture among the samples becomes an error row and exit code 3: that is part of the demonstration.
demo: $(VENV)/.installed
	@mkdir -p $(DEMO)
	$(BIN)/vlmbatch caption sample_data/images sample_data/damaged --model demo -o $(DEMO)/captions.jsonl --overwrite || test $$? -eq 3
	$(BIN)/vlmbatch ocr sample_data/scans --model demo -o $(DEMO)/texts.jsonl --overwrite
	$(BIN)/vlmbatch vqa sample_data/images -q "How many shapes are there?" --model demo -o $(DEMO)/answers.csv --overwrite
	$(BIN)/vlmbatch video sample_data/clips --per clip --fps 1 --model demo -o $(DEMO)/clips.jsonl --overwrite
	@$(BIN)/python sample_data/show.py $(DEMO)/captions.jsonl $(DEMO)/texts.jsonl $(DEMO)/answers.csv $(DEMO)/clips.jsonl

# A worker a core, as tests with tiny models have no use for two; four at most, for the sake of memory.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n logical --maxprocesses 4 --dist worksteal

test-all: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -m ""

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-dev
	$(BIN)/vlmbatch bench --quick --compare transformers

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
