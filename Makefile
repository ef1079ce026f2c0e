# SPDX-License-Identifier: MIT
#
# `make demo` and `make test` do all they need by themselves: a virtual environment in .venv with the project in it.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
RUN = PYTHONPATH=$(CURDIR) $(BIN)
TRIAL_ARGUMENTS ?=
TESTS ?= ssa.test
STAMP = $(VENV)/.installed
DEV_STAMP = $(VENV)/.installed-dev
SCANNERS = build/scanners
PIP = $(BIN)/python -m pip --disable-pip-version-check --quiet

# An editable install has the package ssa only; this tree on the path brings Twisted's plug-in too.
define WRITE_PATH
import os, pathlib, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "ssa-tree.pth").write_text(os.getcwd() + "\n")
endef
export WRITE_PATH

.PHONY: help venv demo test test-vectors test-scanners test-noninterference test-vm test-vm-debug bench soak docs lint \
  wheel-check clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    TLS by socket(2), shown with a throw-away CA"
	@echo "make test    the whole test suite"
	@echo "make test-vectors   every chain of ../shared/vectors (SSA_VECTORS), by a program under ssa run"
	@echo "make test-scanners  sslyze (Mozilla's profiles) and sslscan against servers under ssa run"
	@echo "make test-noninterference   CPython's own tests with and without ssa run"
	@echo "make test-vm        the kernel module on Debian's kernels 6.1 and 6.12, in a virtual machine"
	@echo "make test-vm-debug  the same on a kernel with KASAN, lockdep and kmemleak, which it builds"
	@echo "make bench   the relay against stunnel, haproxy, nginx (as root: installs them)"
	@echo "make soak    10,000 connections, then look for leaks"
	@echo "make lint    ruff, mypy, pydoctor, Sphinx"
	@echo "make docs    build/html and build/man"
	@echo "make wheel-check   build a wheel and use it outside of this tree"
	@echo "make venv    only the virtual environment"
	@echo "make clean   remove all that was made here"

venv: $(STAMP)

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "Python 3.10 or later is needed: $$($(PYTHON) --version 2>&1 || echo 'no $(PYTHON)')." \
	         "Set PYTHON=... to another one, or install the package python3." >&2; exit 1; }
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv $(VENV); \
	elif $(PYTHON) -c 'import virtualenv' 2>/dev/null; then $(PYTHON) -m virtualenv --quiet $(VENV); \
	elif command -v virtualenv >/dev/null; then virtualenv --quiet -p $(PYTHON) $(VENV); \
	else echo "Python's venv module is missing: apt-get install python3-venv (or virtualenv)." >&2; exit 1; fi

$(STAMP): setup.py pyproject.toml ssa/version.py | $(VENV)/bin/python
	$(PIP) install --editable '.[test]'
	@$(BIN)/python -c "$$WRITE_PATH"
	@touch $@

$(DEV_STAMP): $(STAMP)
	$(PIP) install --editable '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(RUN)/python -m ssa.demo

test: $(STAMP)
	$(RUN)/trial --temp-directory=build/trial $(TRIAL_ARGUMENTS) $(TESTS)

test-vectors: $(STAMP)
	SSA_VECTORS_ALL=1 $(RUN)/trial --temp-directory=build/trial ssa.test.vectors

# sslyze needs an older cryptography than the project has: it gets an environment of its own.
$(SCANNERS)/bin/sslyze: | $(STAMP)
	@mkdir -p build
	@if $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then $(PYTHON) -m venv $(SCANNERS); \
	elif $(PYTHON) -c 'import virtualenv' 2>/dev/null; then $(PYTHON) -m virtualenv --quiet $(SCANNERS); \
	else virtualenv --quiet -p $(PYTHON) $(SCANNERS); fi
	$(SCANNERS)/bin/python -m pip --disable-pip-version-check --quiet install 'sslyze >= 6.3'

test-scanners: $(STAMP) $(SCANNERS)/bin/sslyze
	@if ! command -v sslscan >/dev/null && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get -q -y install --no-install-recommends sslscan </dev/null || { apt-get -q update && \
	  apt-get -q -y install --no-install-recommends sslscan </dev/null; }; fi
	@command -v sslscan >/dev/null || { echo "sslscan is missing: apt-get install sslscan." >&2; exit 1; }
	$(RUN)/trial --temp-directory=build/trial $(TRIAL_ARGUMENTS) ssa.test.scanners

test-noninterference: $(STAMP)
	$(RUN)/python -m ssa.test.noninterference --parallel $(MODULES)

test-vm: $(STAMP)
	@$(RUN)/python -m ssa.test.vm test $(SCENARIOS)

test-vm-debug: $(STAMP)
	@$(RUN)/python -m ssa.test.vm test --kernel debug $(SCENARIOS)

bench: $(STAMP)
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  for tool in stunnel4 haproxy nginx libnginx-mod-stream; do \
	    dpkg-query -W -f='$${Status}' $$tool 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$tool"; done; \
	  [ -z "$$missing" ] || { export RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive; \
	    apt-get -q -y install --no-install-recommends $$missing </dev/null || { apt-get -q update && \
	    apt-get -q -y install --no-install-recommends $$missing </dev/null; }; } fi
	$(RUN)/python -m benchmarks.run --system "$(CURDIR)/$(BIN)/ssa run --embedded --" $(BENCH_ARGUMENTS)

soak: $(STAMP)
	$(RUN)/python -m ssa.test.soak $(CONNECTIONS)

lint: $(DEV_STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python .ci/check-docstrings
	$(MAKE) docs

docs: $(DEV_STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/html
	$(BIN)/sphinx-build -q -W --keep-going -b man docs build/man

wheel-check: $(DEV_STAMP)
	PYTHON=$(BIN)/python sh .ci/wheel-check

clean:
	rm -rf $(VENV) build dist ssa.egg-info _trial_temp .mypy_cache .ruff_cache
	find ssa twisted benchmarks examples -name __pycache__ -type d -prune -exec rm -rf {} +
