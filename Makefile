# Each target sets itself up: a .venv of its own with the versions that pyproject.toml pins.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)
# One thread each for two test processes; more would only stand in each other's way.
export OMP_NUM_THREADS ?= 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test lint bench accuracy wheel clean

help:
	@echo "make demo      train the tutorial's model with each normalization; tables and pictures in demo-out/"
	@echo "make test      lint, types and tests on every framework"
	@echo "make accuracy  errors of anynorm and its peers against float64"
	@echo "make bench     speed of anynorm and of Keras's own layers"
	@echo "make wheel     build the wheel into dist/"

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "anynorm needs Python 3.11 or newer; name one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up .venv (a few minutes and about 3 GB the first time)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@rm -f .venv/.installed-*
	@touch $@

demo: $(STAMP)
	@$(BIN)/anynorm demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	KERAS_BACKEND=jax $(BIN)/pytest -q -n 2 tests/test_keras_*.py src/anynorm/keras
	KERAS_BACKEND=torch $(BIN)/pytest -q -n 2 tests/test_keras_*.py src/anynorm/keras
	KERAS_BACKEND=tensorflow $(BIN)/pytest -q -n 2

accuracy: $(STAMP)
	$(BIN)/python benchmarks/accuracy.py $(ARGS)

bench: $(STAMP)
	$(BIN)/python benchmarks/speed.py $(ARGS)

wheel: $(STAMP)
	$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean:
	rm -rf .venv dist build demo-out
