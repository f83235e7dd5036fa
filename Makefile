# Each target sets itself up: a .venv of its own with the versions that pyproject.toml pins, and the CPU kernels built
# into the source tree.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed-$(shell cksum pyproject.toml | cut -d' ' -f1)
BUILD := build/kernels
KERNELS := $(BUILD)/.installed
TRITON_AT := .venv/triton
TRITON := $(TRITON_AT)/.installed-3.9.0
CPU := src/anynorm/kernels/cpu
# One thread each for two test processes; more would only stand in each other's way.
export OMP_NUM_THREADS ?= 1
export TF_CPP_MIN_LOG_LEVEL ?= 2

.PHONY: help demo test lint bench gpu accuracy instructions kernels kernel-tests triton-tests wheel clean

help:
	@echo "make demo      train the tutorial's model with each normalization; tables and pictures in demo-out/"
	@echo "make test      lint, types and tests on every framework"
	@echo "make accuracy  errors of anynorm and its peers against float64"
	@echo "make bench     speed of anynorm and its peers; chart and tables of the READMEs (40 minutes)"
	@echo "make gpu       on a machine with a GPU: the tests that need one, and the GPU kernels' speed beside their peers'"
	@echo "make kernels   the CPU kernels, rebuilt as far as their sources changed; every target above does it"
	@echo "make kernel-tests  the kernels' C++ tests alone, with and without sanitizers; make test runs them too"
	@echo "make instructions  what the kernels cost, counted by valgrind"
	@echo "make wheel     build the wheel into dist/"

# pip leaves the kernels out here: it would compile all of them, in a place of its own, each time.
$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "anynorm needs Python 3.11 or newer; name one, as in: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "setting up .venv (a few minutes and about 4 GB the first time)"
	@$(PYTHON) -m venv .venv
	@ANYNORM_KERNELS=off $(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@rm -f .venv/.installed-*
	@touch $@

# Apart: where it can be imported torch's compiler imports it, and after TensorFlow that ends the process, since both
# bring LLVM.
$(TRITON): $(STAMP)
	@$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(TRITON_AT) triton==3.9.0
	@touch $@

# Without a compiler everything works, composed; a compiler that fails is an error.
$(KERNELS): $(STAMP) CMakeLists.txt $(CPU)/core $(CPU)/doors $(wildcard $(CPU)/*.h $(CPU)/core/* $(CPU)/doors/*)
	@command -v $${CXX:-c++} >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null || \
		{ echo "no C++ compiler: going on without the CPU kernels"; exit 0; }; \
	PATH="$(CURDIR)/$(BIN):$$PATH"; \
	cmake -S . -B $(BUILD) -G Ninja --log-level=WARNING -DPython_EXECUTABLE="$(CURDIR)/$(BIN)/python" && \
	cmake --build $(BUILD) && cmake --install $(BUILD) >/dev/null && touch $@

kernels: $(KERNELS)

demo: $(KERNELS)
	@$(BIN)/anynorm demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

kernel-tests: $(KERNELS)
	@PATH="$(CURDIR)/$(BIN):$$PATH" tests/kernels/run

test: lint kernel-tests
	KERAS_BACKEND=jax $(BIN)/pytest -q -n 2 tests/test_keras_*.py src/anynorm/keras
	KERAS_BACKEND=torch $(BIN)/pytest -q -n 2 tests/test_keras_*.py src/anynorm/keras
	KERAS_BACKEND=tensorflow $(BIN)/pytest -q -n 2
ifeq ($(shell uname -s),Linux)
	@$(MAKE) --no-print-directory triton-tests
endif

triton-tests: $(TRITON) $(KERNELS)
	PYTHONPATH=$(TRITON_AT) TRITON_INTERPRET=1 $(BIN)/pytest -q -n 2 tests/gpu/interpreted
	PYTHONPATH=$(TRITON_AT) $(BIN)/pytest -q -n 2 tests/gpu/compiled

accuracy: $(KERNELS)
	$(BIN)/python benchmarks/accuracy.py $(ARGS)

bench: $(KERNELS)
	$(BIN)/python benchmarks/speed.py $(ARGS)
	$(if $(ARGS),,$(BIN)/python benchmarks/fit.py)

# PyTorch's pool of memory would hide from memcheck where an array ends.
gpu: $(KERNELS)
	$(BIN)/pytest -q tests/gpu/device
	$(BIN)/pytest -q tests/test_pallas.py -k on_a_gpu
	@if ! command -v compute-sanitizer >/dev/null; then \
		echo "compute-sanitizer is not on the PATH: going on without memcheck and racecheck"; exit 0; fi; \
	for tool in memcheck racecheck; do \
		PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
			$(BIN)/python -m pytest -q tests/gpu/device -k "test_values and not large" || exit 1; \
	done
	$(BIN)/python benchmarks/gpu.py $(ARGS)

instructions: $(KERNELS)
	$(BIN)/python benchmarks/instructions.py

wheel: $(STAMP)
	@rm -f dist/anynorm-*.whl
	@$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@ls dist/anynorm-*.whl
	@! ls dist/anynorm-*-any.whl >/dev/null 2>&1 || \
		{ echo "this wheel is without the CPU kernels, since building them failed: pip wheel --verbose . says why"; exit 1; }

clean:
	rm -rf .venv dist build demo-out $(CPU)/libanynorm_*
