# The two commands that a newcomer needs are `make demo` and `make test`. Each sets up what it uses: a virtual
# environment in .venv, with fstream (editable) and the extras of pyproject.toml that the target needs. It is
# brought up to date whenever pyproject.toml changes.

VERSIONS := 3.11 3.12 3.13 3.13t 3.14 3.15
VENV     ?= .venv
# How many tests run at once. Most of them wait, so it may be more than there are CPUs.
JOBS     ?= 4
PY       := $(VENV)/bin/python

# The first interpreter that is new enough; `make PYTHON=...` takes another.
ifeq ($(origin PYTHON), undefined)
PYTHON := $(shell for python in python3 python3.15 python3.14 python3.13 python3.12 python3.11; do \
    $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null && echo $$python && break; done)
endif

# "3.11", or "3.13t" for a free-threaded build: what an interpreter is, or nothing if it does not run.
version := -c 'import sys, sysconfig as c; print("%d.%d" % sys.version_info[:2] + "t" * bool(c.get_config_var("Py_GIL_DISABLED")))' 2> /dev/null
VERSION := $(shell $(PY) $(version) || $(PYTHON) $(version))

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo demo-cluster test quick check bench soak mutants cover fmt lint types clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

demo: $(VENV)/.with-examples  ## run the main job: count the names in Python's standard library
	$(PY) examples/stdlib_names.py $(ARGS)

demo-cluster: $(VENV)/.with-dask  ## the same on a dask cluster of two processes, which it starts
	$(PY) examples/stdlib_names.py --cluster $(ARGS)

test: $(VENV)/.with-test  ## run the doctests, the tests and the property tests
	@$(PY) -m compileall -q fstream  # worker processes start faster, where Python may not write bytecode itself
	$(PY) -m pytest -n $(JOBS) --dist worksteal $(ARGS)

quick: $(VENV)/.with-test  ## run the tests that take little time: for the inner loop
	$(PY) -m pytest -n $(JOBS) --dist worksteal -m "not slow" --hypothesis-profile quick $(ARGS)

check: lint types test $(filter-out test-$(VERSION),$(VERSIONS:%=test-%))  ## all that CI checks, on each Python that is here
	$(PY) tests/mutants.py --draw --quick

bench: $(VENV)/.with-bench  ## measure fstream beside its peers
	@$(PY) -m compileall -q fstream
	$(PY) -m benchmarks $(ARGS)

soak: $(VENV)/.with-test  ## run random pipelines with random faults for some minutes
	$(PY) tests/soak.py $(ARGS)

mutants: $(VENV)/.with-test  ## seed bugs into the engine, one at a time, and see that the tests find every one
	$(PY) tests/mutants.py $(ARGS)

cover: $(VENV)/.with-dev  ## run the tests and show which lines they miss
	$(PY) -m coverage erase
	$(PY) -m coverage run -m pytest $(ARGS)
	$(PY) -m coverage combine --quiet
	$(PY) -m coverage report

fmt: $(VENV)/.with-dev  ## format the code and repair what lint can repair
	$(PY) -m ruff check --fix-only --quiet .
	$(PY) -m ruff format .

lint: $(VENV)/.with-dev  ## check format, lint and who imports whom
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) tests/floors.py

types: $(VENV)/.with-dev  ## check types
	$(PY) -m mypy

clean:  ## remove the environments and the caches
	rm -rf .venv .venv-* *.egg-info build dist .coverage* .pytest_cache .hypothesis .mypy_cache .ruff_cache

# `make test-3.12` tests on that version, in .venv-3.12; `make test-3.13t` on its free-threaded build. The interpreter is
# one of pyenv's or the one on PATH. A tenth of the fault matrix and of the tests marked `drawn` runs there and a fifth
# of the other slow ones, drawn anew each day, and hypothesis tries fewer examples: all of it would take most of the
# time, for what `make test` has seen on its own Python. `FSTREAM_MATRIX=pairs` runs all.
test-%:
	@for python in $${PYENV_ROOT:-$$HOME/.pyenv}/versions/$(*:t=)*/bin/python python$*; do \
	    if [ "$$($$python $(version))" = $* ]; then \
	        exec env FSTREAM_MATRIX=$${FSTREAM_MATRIX:-drawn} HYPOTHESIS_PROFILE=$${HYPOTHESIS_PROFILE:-quick} \
	            $(MAKE) --no-print-directory test PYTHON=$$python VENV=.venv-$*; \
	    fi; \
	done; \
	echo "There is no Python $* here: its tests are skipped."

$(VENV)/.with-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "fstream needs Python 3.11 or newer: make PYTHON=..." >&2; exit 1; }
	@$(PY) -c '' 2> /dev/null || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --prefer-binary --editable '.[$*]'
	@# A Python that was unpacked without bytecode, and may not write any (PYTHONDONTWRITEBYTECODE), would compile its
	@# library whenever a worker process starts: 0.9 s in place of 0.13.
	@$(PY) -W ignore -c 'import compileall, os, re; compileall.compile_dir(os.path.dirname(os.__file__), quiet=2, workers=0, \
	    rx=re.compile("/(tests?|idlelib|site-packages|dist-packages)/"))' || true
	@# Not in pyproject.toml: there is none for free-threaded builds, and no marker that says so.
	@$(PY) -m pip install --quiet --only-binary :all: 'uvloop>=0.19' 2> /dev/null || \
	    echo "There is no uvloop for this Python: its tests are skipped."
	@touch $@
