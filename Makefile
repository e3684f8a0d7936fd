# make run    set up .venv, run the numbered notebooks (PROFILE=smoke), print the table and where the report is
# make test   set up .venv, run the quick tests and re-run the committed notebooks; make test-full adds the long variants
# make bench  measure what benchmarks/ sets targets for
# PYTHON=python3.12 chooses another Python (3.11 or later) than the first of PYTHONS that works.

PROFILE ?= smoke
VENV ?= .venv
PYTHONS = python3.11 python3.12 python3.13 python3
KAGGLE_VENV = .venv-kaggle
DINO_VENV = .venv-groundingdino
NOTEBOOKS = $(sort $(wildcard results/smoke/notebooks/*.ipynb))
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout 300 --nbval-sanitize-with tests/nbval_sanitize.cfg
# A shim of a Python that is not installed is found by name and fails when called: so each is asked.
FIND_PYTHON = for p in $(PYTHON) $(PYTHONS); do "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; p=; done; \
	[ -n "$$p" ] || { echo "no Python 3.11 or later found: install one (Debian, Ubuntu: apt-get install python3; macOS: brew install python@3.11)"; exit 1; }
# Notebooks re-run in a work folder of their own, which is removed afterwards; the closing line of pytest is the last one.
PYTEST = export REPRO_WORK=$$(mktemp -d); trap 'rm -rf "$$REPRO_WORK"' EXIT; export TQDM_DISABLE=1 OMP_WAIT_POLICY=PASSIVE; $(1)/bin/python -m pytest -p no:cacheprovider

.PHONY: run test test-full sims-for-tests test-kaggle test-groundingdino test-other-pythons bench setup clean
.DEFAULT_GOAL := run
export PIP_DISABLE_PIP_VERSION_CHECK = 1

run: setup
	@$(VENV)/bin/repro run --profile $(PROFILE)
	@$(VENV)/bin/repro table --profile $(PROFILE)

test: setup sims-for-tests
	@$(call PYTEST,$(VENV)) $(NBVAL) -m "not full" tests $(NOTEBOOKS)

test-full: setup sims-for-tests test-kaggle test-groundingdino test-other-pythons
	@$(call PYTEST,$(VENV)) $(NBVAL) tests $(NOTEBOOKS)

# The real simulators' tests run where LIBERO's assets, and a checkout of CALVIN, are there; elsewhere they skip and say so.
sims-for-tests: setup
	@if [ -d "$${REPRO_LIBERO_ASSETS:-$${REPRO_TEST_DATA:-../shared/data}/libero_assets_lite}" ]; then \
	  $(VENV)/bin/repro sims setup libero || echo "LIBERO's simulator is not set up: its tests will be skipped"; fi
	@if [ -n "$$CALVIN_ROOT" ]; then \
	  $(VENV)/bin/repro sims setup calvin || echo "CALVIN's simulator is not set up: its tests will be skipped"; fi

# The versions of Kaggle's image: the quick tests on numpy 2.0 and transformers 5.0.
test-kaggle: $(KAGGLE_VENV)/.stamp
	@$(call PYTEST,$(KAGGLE_VENV)) -m "not full" tests

# GroundingDINO's original package beside transformers' port: the same numbers, on transformers 4, on Kaggle's and on the pinned one.
test-groundingdino:
	@$(FIND_PYTHON); .ci/groundingdino "$$p" $(DINO_VENV)

# Pythons that are here beside the one of .venv: what needs no torch.
test-other-pythons:
	@.ci/other-pythons $(VENV)

bench: setup
	@for file in benchmarks/*.py; do echo "== $$file"; $(VENV)/bin/python "$$file" || exit 1; done

setup: $(VENV)/.stamp

# The stamp is as new as the last complete installation: set-up runs once, and again when a pin changes.
$(VENV)/.stamp: requirements.txt pyproject.toml .ci/install
	@$(FIND_PYTHON); .ci/install "$$p" $(VENV) -r requirements.txt -e .
	@touch $@

$(KAGGLE_VENV)/.stamp: constraints-kaggle.txt pyproject.toml .ci/install
	@$(FIND_PYTHON); .ci/install "$$p" $(KAGGLE_VENV) -c constraints-kaggle.txt -e . pytest nbval beartype
	@touch $@

clean:
	rm -rf $(VENV) $(KAGGLE_VENV) $(DINO_VENV) .sims work
