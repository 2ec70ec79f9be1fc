# make setup   the environment (.venv) with everything: server, export, clients, tests
# make demo    eight cameras through the real server, on this machine
# make test    all tests; make lint  ruff and mypy; make clean  what was built

PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test lint format clean

setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "expected Python 3.10 to 3.12, for which the embedded server has packages, got $$($(PYTHON) --version); say which with make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "python3 cannot make an environment; on Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check --editable ".[serve,export,rtx,tracks,dashboard,dev]"
	@touch $@

demo: setup
	$(BIN)/python -m demo --output build/demo

# In two halves side by side: most tests keep one core busy.
test: setup
	@mkdir -p build
	@$(BIN)/python -m pytest tests/export tests/perf >build/tests-1.log 2>&1 & first=$$!; \
	  trap 'kill $$first 2>/dev/null || true' EXIT; status=0; \
	  $(BIN)/python -m pytest tests --ignore tests/export --ignore tests/perf || status=$$?; \
	  wait $$first || status=$$?; \
	  cat build/tests-1.log; exit $$status

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build
