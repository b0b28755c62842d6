# Builds the virtual environment and runs the demo, the tests and the checks in it.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed
WORKERS ?= auto
TESTS = -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
ENGINE = $(TESTS) -W ignore::DeprecationWarning tests/assess tests/criteria tests/evolve tests/prune tests/quantize tests/encode

.DEFAULT_GOAL := help
.PHONY: help demo test minimum wheel lint docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' Makefile

demo: $(STAMP) ## prune a network on real data and show what it costs
	@$(BIN)/python examples/demo.py

test: $(STAMP) ## run all tests, in as many processes as WORKERS= says
	@OMP_NUM_THREADS=1 $(BIN)/python $(TESTS)

minimum: ## run the engine's tests with the oldest versions it declares; downloads gigabytes
	@$(PYTHON) -m venv .venv-minimum
	@.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-minimum.txt -e '.[test]'
	@OMP_NUM_THREADS=1 .venv-minimum/bin/python $(ENGINE)

wheel: $(STAMP) ## install the wheel with another PYTHON= and run the engine's tests on it; may download gigabytes
	@rm -rf build/wheel .venv-wheel
	@$(BIN)/python -m build --wheel --no-isolation --outdir build/wheel . > .venv/wheel.log 2>&1 || { cat .venv/wheel.log >&2; exit 1; }
	@$(PYTHON) -m venv .venv-wheel
	@.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check "$$(ls build/wheel/*.whl)[cli,test]"
	@cp -r tests pyproject.toml build/wheel
	@cd build/wheel && OMP_NUM_THREADS=1 ../../.venv-wheel/bin/python $(ENGINE)

lint: $(STAMP) ## check style, formatting, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

docs: $(STAMP) ## build the documentation into build/site; a warning is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet && echo "build/site/index.html"

clean: ## remove the environment and everything that was built
	rm -rf .venv .venv-minimum .venv-wheel build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# pip's output goes to a log that is shown only where the installation fails.
$(STAMP): pyproject.toml constraints.txt
	@echo "installing into .venv"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[torch-pruning,nni,neural-compressor,dev]' \
		> .venv/install.log 2>&1 || { cat .venv/install.log >&2; exit 1; }
	@touch $@
