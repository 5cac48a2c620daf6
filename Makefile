# `make demo` does all set-up and compresses the embedded teacher; `make test` does all set-up and passes the tests.
# Both need Python 3.11 and make, nothing else, and do their set-up once.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint gate clean

demo: $(STAMP)
	$(BIN)/edgediff compress --recipe fashion-ddpm-demo --out runs/demo --resume
	@echo "open runs/demo/report.html"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,rtx]'
	touch $@

# One thread a worker: OpenMP pools of several workers on the same cores stall each other.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# This repository's own use of `edgediff check`: a short run against its recorded baseline.
gate: $(STAMP)
	rm -rf runs/gate
	$(BIN)/edgediff compress --recipe fashion-ddpm-gate --out runs/gate
	$(BIN)/edgediff check runs/gate --baseline benchmarks/gate-baseline.json --junit runs/gate/junit.xml

clean:
	rm -rf $(VENV) runs
