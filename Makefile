# make demo   set up, then distil a small network into a smaller one on real digits
# make test   set up, then run the tests
# make quick  the fast ones of losses, terms and the step
# make verification   measure what every loss is held to, and write docs/verification-report.md
# make mutation   change the code in 210 places, and see whether the tests notice
# make notebook   run the notebook of docs/notebooks, and write its page
# make fuzz   feed every parser what its files are not, for MINUTES=10
# make long   100,000 steps with logging and saving: memory, speed, files, cost of saves
# make faults   break saves, files and runs in tens of thousands of places, and write docs/reliability-faults.md
# make lint   formatting, lint, types
# make docs   the documentation site, into site/

# The first of these that is Python 3.11 or newer; override with `make PYTHON=...`.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WORKERS ?= 2
# What one run has compiled the next only reads; `make clean` deletes it.
PROGRAMS ?= $(CURDIR)/.cache/programs
# A worker takes whole files, and of the longest file all that is asked of one loss: tests/conftest.py says which.
SPREAD = JAX_COMPILATION_CACHE_DIR="$(PROGRAMS)" $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

.PHONY: setup demo test quick slow verification mutation notebook fuzz long faults lint format docs lock clean

setup: $(READY)

# A half-finished installation has no .ready file and is made again from the start.
$(READY): requirements.lock
	@test -n "$(PYTHON)" || { echo "kdjax needs Python 3.11 or newer, and none was found; name one: make PYTHON=/path/to/python"; exit 1; }
	@test ! -L $(VENV) || { echo "$(VENV) is a link, and making it again would empty what it points to; delete the link"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q $(VENV)/lib kdjax || true
	touch $(READY)

demo: $(READY)
	$(BIN)/python experiments/digits.py --out checkpoints/runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(READY)
	@find "$(PROGRAMS)" -type f -mtime +14 -delete 2>/dev/null || true
	$(SPREAD) -m "not slow"

# The losses' values, their errors, terms and the step: what a change breaks first.
quick: $(READY)
	$(SPREAD) -m "not slow" tests/test_losses.py tests/test_losses_errors.py tests/test_objectives_terms.py tests/test_training_step.py \
		-k "not (bad_points or slopes or golden or finite_differences or couples or Variants or float64)"

slow: $(READY)
	$(BIN)/python -m pytest -m slow

# Minutes of one core; nothing is written where a law does not hold. The record is that of the slow property tests.
verification: $(READY)
	$(BIN)/python tests/verification.py --properties tests/property_run.jsonl --out docs/verification-report.md

# Some 20 minutes of two cores, an hour the first time; goes on with what tests/mutation_run.json holds.
mutation: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "cosmic-ray>=8.4"
	$(BIN)/python tests/mutation.py

# A minute; the page shows what was measured here.
NOTEBOOK := docs/notebooks/four_tutorials
notebook: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "ipykernel>=6.29" "jupytext>=1.16" "nbconvert>=7.16"
	rm -rf $(NOTEBOOK)_files
	$(BIN)/python -m jupytext --quiet --execute --to ipynb --output - $(NOTEBOOK).py | $(BIN)/python -m nbconvert --stdin \
		--CoalesceStreamsPreprocessor.enabled=True --to markdown --template-file docs/hooks/notebook.md.j2 \
		--output $(notdir $(NOTEBOOK)) --output-dir $(dir $(NOTEBOOK))

# Of any number of minutes; it ends with a count of what was tried, and an error where a parser broke the law.
MINUTES ?= 10
fuzz: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3.0"
	$(BIN)/python tests/fuzz.py $(MINUTES)

# A hundred thousand steps, logged and saved: does memory grow, does it get slower, what does saving cost?
long: $(READY)
	PYTHONPATH=.:tests $(BIN)/python tests/long_run.py tests/long_run.json

# Up to half an hour of two cores; nothing is written where one fault ends otherwise than it should. Linux and a C compiler.
faults: $(READY)
	JAX_COMPILATION_CACHE_DIR="$(PROGRAMS)" $(BIN)/python tests/faults.py --out docs/reliability-faults.md

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The variable silences a notice of mkdocs-material about the future of mkdocs; it changes nothing else.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# Needs uv. No addresses in it; plain pip installs it with every hash checked.
lock:
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--extra dev pyproject.toml -o requirements.lock
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
		--constraint requirements.lock pyproject.toml -o requirements-core.lock

clean:
	rm -rf $(VENV) site .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
