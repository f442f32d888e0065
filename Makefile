PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/installed

.PHONY: install demo test test-lowest bench torture fuzz audit lint check

install: $(STAMP)

# Runs once, and again only after pyproject.toml has changed.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: $(STAMP)
	@set -e; name=demo-$$(date +%Y%m%d-%H%M%S); \
	$(BIN)/python search.py --dataset digits --name $$name $(DEMO_SEARCH); \
	$(BIN)/python train_final.py --dataset digits --genotype $$name --name $$name-final $(DEMO_FINAL); \
	echo; \
	echo "genotype genotypes/$$name.json, pictures runs/$$name/cells/normal.png and reduce.png, accuracy and weights" \
	     "runs/$$name-final/, curves: $(BIN)/tensorboard --logdir runs"

# Small enough for two cores and a few minutes. Images of 8 × 8 pixels need a small cutout.
DEMO_SEARCH := --preset quick
DEMO_FINAL := --epochs 15 --batch-size 48 --init-channels 16 --num-cells 3 --drop-path 0.1 --cutout 2

test: $(STAMP)
	$(BIN)/python -m pytest

# Run the tests with the lowest versions that pyproject.toml allows, in a separate environment.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	sed -n 's/^ *"\([a-z-]*\)>=\([0-9.]*\)",$$/\1==\2/p' pyproject.toml > .venv-lowest/constraints.txt
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check \
	    --constraint .venv-lowest/constraints.txt --editable '.[dev]'
	.venv-lowest/bin/python -m pytest

# Compare the speed with the textbook form. Takes half an hour on a quiet machine.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.search_step
	$(BIN)/python -m benchmarks.final_step

# Run the slow tests, kill both scripts thirty times each and compare the bits, try every wrong call. Takes 40 minutes.
torture: $(STAMP)
	$(BIN)/python -m pytest -m slow
	$(BIN)/python -m tests.torture --kills 30 --script search
	$(BIN)/python -m tests.torture --kills 30 --script train_final

# Test every parser with generated input, 3,000 cases per test.
fuzz: $(STAMP)
	$(BIN)/python -m pytest -m fuzz --hypothesis-profile=fuzz

# List known vulnerabilities of the installed packages. Fails if it cannot look them up.
audit: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > .venv/frozen.txt
	$(BIN)/python -m pip_audit --strict --disable-pip --no-deps --requirement .venv/frozen.txt

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

check: lint test
