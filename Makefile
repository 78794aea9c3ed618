# Everything a fresh machine needs is Python 3.11 or newer with pip, make and a package index.
# `make setup` puts the rest, as locked in uv.lock, into .venv; a second `make` finds it there and does nothing.

PORT ?= 8000
PYTHON ?=
ARGS ?=

# `make` may be called with an empty environment, and without a PATH the recipes find no program.
ifndef PATH
PATH := /usr/local/bin:/usr/bin:/bin
endif
export PATH
# A virtualenv or a uv setting of the caller's shell must not send the packages elsewhere. uv trusts the machine's
# certificates, as pip does.
unexport VIRTUAL_ENV PYTHONHOME PIP_TARGET PIP_USER
export UV_PROJECT_ENVIRONMENT := .venv
export UV_PYTHON_DOWNLOADS := never
export UV_SYSTEM_CERTS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

# All that a checkout runs: the platform and the libraries of its processors.
EXTRAS := --extra server --extra processors

# Holds the path it was made at: a virtualenv that was copied or moved with its checkout runs the other one's code.
READY := .venv/ready
ifneq ($(shell read -r made_at 2>/dev/null <$(READY) && echo "$$made_at"):$(wildcard .venv/bin/python),$(CURDIR):.venv/bin/python)
.PHONY: $(READY)
endif

.DEFAULT_GOAL := help
.PHONY: help setup run test corpus check bench

help: ## show this
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1	\2/p' Makefile

setup: $(READY) ## put everything needed, as locked, into .venv
	@echo "Ready: .venv/bin/headway"

run: $(READY) ## start the platform, process a sample, keep serving until Ctrl-C (PORT=8000)
	@exec .venv/bin/headway up --demo --port $(PORT)

# Four at a time: much of a test's time is waiting for processes. A file's tests stay together and share their platform.
# What is compiled is kept, whatever the environment says: a test starts many processes.
test: $(READY) ## run the tests (ARGS="-k word" goes to pytest)
	@PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

corpus: $(READY) ## run all 1,100 files of tests/corpus.py through the processors, beside other tools
	@HEADWAY_CORPUS=all PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -n 2 tests/contract/test_corpus.py $(ARGS)

# No cache for the lint: ruff's keeps the order of imports it found before a module of ours was there.
check: $(READY) ## formatting, lint, types, known holes in dependencies; `make test` checks the docs
	@.venv/bin/ruff format --check
	@.venv/bin/ruff check --no-cache
	@.venv/bin/mypy
	@UV_HTTP_RETRIES=0 .venv/bin/uv audit --frozen --no-dev $(EXTRAS) --quiet >.venv/audit.txt 2>&1; case $$? in \
	0) ;; 1) cat .venv/audit.txt; exit 1 ;; *) echo "Not audited: the database of advisories cannot be reached." ;; esac

# Needs cc and two cores that nobody else uses; takes about ten minutes. Peers that cannot be installed are left out.
bench: $(READY) ## measure the relay beside other servers, into docs/performance.md (ARGS="--clients 5000 --rounds 1")
	@.venv/bin/python -m benchmarks.relay --write $(ARGS)

# What is not obvious here:
# - The virtualenv is made without pip: Debian's python3 cannot put it there unless python3-venv is installed. The pip
#   beside the Python found brings uv in, and ensurepip is the way for a Python that has none.
# - uv caches under the home; where there is none to write to, inside .venv, where its hard links cost no space.
# - uv goes to the files named in uv.lock. Where only pip knows the package index (a mirror in pip.conf), pip installs
#   the same versions and checks the same hashes.
$(READY): pyproject.toml uv.lock
	@set -eu; \
	if [ -f $@ ] && [ "$$(cat $@)" != '$(CURDIR)' ]; then rm -rf .venv; fi; \
	venv=.venv/bin/python; modern='import sys; sys.exit(sys.version_info < (3, 11))'; \
	found=; for python in $(PYTHON) python3.14 python3.13 python3.12 python3.11 python3 python; do \
	  if "$$python" -c "$$modern" >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "Headway needs Python 3.11 or newer, and found none: install it, or say where it is with 'make PYTHON=/path/to/python3 setup'." >&2; exit 1; fi; \
	if ! "$$venv" -c "$$modern" >/dev/null 2>&1; then \
	  echo "Setting up .venv with $$("$$found" -V)"; "$$found" -m venv --clear --without-pip .venv; \
	fi; \
	if "$$found" -m pip --version >/dev/null 2>&1; then pip="$$found -m pip --python $$venv"; \
	elif "$$venv" -m ensurepip >/dev/null 2>&1; then pip="$$venv -m pip"; \
	else echo "Headway needs pip: '$$found' has neither pip nor ensurepip." >&2; exit 1; fi; \
	[ -w "$${HOME:-}" ] || export UV_CACHE_DIR="$${UV_CACHE_DIR:-.venv/cache}"; \
	uv=$$(sed -n '/^name = "uv"$$/,/^version/s/^version = "\(.*\)"$$/\1/p' uv.lock); \
	case "$$(.venv/bin/uv --version 2>/dev/null) " in "uv $$uv "*) ;; *) $$pip install --quiet "uv==$$uv" ;; esac; \
	if ! .venv/bin/uv sync --frozen --quiet $(EXTRAS) --python "$$venv"; then \
	  echo "uv could not; trying pip, with its own package index" >&2; \
	  .venv/bin/uv export --frozen --quiet $(EXTRAS) --no-emit-project --output-file .venv/locked.txt; \
	  $$pip install --quiet --require-hashes --requirement .venv/locked.txt; \
	  $$pip install --quiet --no-deps --editable .; \
	fi; \
	echo '$(CURDIR)' > $@
