# Every target sets up what it needs in .venv, and is quick the second time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_WAIT_POLICY ?= PASSIVE
export TOKENIZERS_PARALLELISM ?= false

.PHONY: demo test check docs cookbook cookbook-check format clean

demo: $(VENV)/demo.stamp
	$(BIN)/ragft demo

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q

check: $(VENV)/check.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -q -d build/site && echo "wrote build/site/index.html"

# Executes the notebooks and writes their outputs into them.
cookbook: $(VENV)/cookbook.stamp
	$(BIN)/python scripts/run_cookbook.py

cookbook-check: $(VENV)/cookbook.stamp
	$(BIN)/python -m pytest -q -m cookbook tests/cookbook

format: $(VENV)/check.stamp
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: $(BIN)/python pyproject.toml constraints.txt
	@began=$$(date +%s); $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[demo]' -c constraints.txt \
	&& echo "installed in $$(( $$(date +%s) - began )) s" && touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp requirements-test.txt
	@began=$$(date +%s); $(BIN)/python -m pip install -q --disable-pip-version-check -e '.[demo,documents,train,qlora,onnx,static,sentence-transformers,embedded,agents,llama-index,community]' \
	-r requirements-test.txt -c constraints.txt && echo "installed in $$(( $$(date +%s) - began )) s" && touch $@

$(VENV)/check.stamp: $(VENV)/test.stamp requirements-lint.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-lint.txt -c constraints.txt && touch $@

$(VENV)/docs.stamp: $(VENV)/test.stamp requirements-docs.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-docs.txt -c constraints.txt && touch $@

$(VENV)/cookbook.stamp: $(VENV)/test.stamp requirements-cookbook.txt
	@$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-cookbook.txt -c constraints.txt && touch $@

clean:
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
