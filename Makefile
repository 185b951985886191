# Each of `make quickstart` and `make test` does all its set-up in .venv; a second call installs nothing.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
KILLS ?= 200
# Of `make reproduce`: where to, and for a rehearsal a share of the training and fewer worlds.
OUT ?= reproduction
SHARE ?= 1
WORLDS ?= 0 1 2 3 4
GRIDS := first_three switch_point base_budget blend_weights optimizer_state schedules adaptive horizons repetitions architectures
PIP := python -m pip install --quiet --disable-pip-version-check
FAST := python -m pytest -m "not slow and not gpu" --numprocesses auto --maxprocesses 8 --dist loadscope
SLOW := python -m pytest -m "slow and not gpu" --numprocesses auto --maxprocesses 2 --dist loadfile

.PHONY: quickstart test test-latest test-oldest slow chaos faults hostile check wheel bench reproduce clean
.DELETE_ON_ERROR:

quickstart: .venv/ready  ## the whole idea in minutes: pretrain, continue, compare, report
	$(BIN)/lit-cpt quickstart $(ARGS)

test: .venv/ready  ## the fast tests
	$(BIN)/$(FAST) $(ARGS)

test-latest:  ## the fast tests with the newest versions that pyproject.toml allows, in .venv-latest
	@test -d .venv-latest || $(PYTHON) -m venv .venv-latest
	.venv-latest/bin/$(PIP) --upgrade --upgrade-strategy eager pip
	.venv-latest/bin/$(PIP) --upgrade --upgrade-strategy eager -e ".[dev]"
	.venv-latest/bin/$(FAST) $(ARGS)

test-oldest: .venv-oldest/ready  ## the fast tests with the lower bounds of pyproject.toml, in .venv-oldest
	.venv-oldest/bin/$(FAST) $(ARGS)

slow: .venv/ready  ## the proofs that take longer
	$(BIN)/$(SLOW) $(ARGS)

chaos: .venv/ready  ## kill a run KILLS times at random and resume it; it must train the same stream to the same weights
	$(BIN)/python tests/exactness/chaos.py --kills $(KILLS) $(ARGS)

faults: .venv/ready  ## runs that something befalls, on two ranks: what they did, what it cost, whether the ranks agree
	$(BIN)/python tests/exactness/fault_table.py $(ARGS)

hostile: .venv/ready  ## programs that try to get out of the sandbox; it must hold them all
	$(BIN)/python tests/hostile/table.py $(ARGS)

check: .venv/ready  ## style, types, examples in docstrings
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules lit_cpt

wheel: .venv/ready
	rm -rf dist build && $(BIN)/python -m build --wheel --outdir dist .

bench: .venv/ready  ## every benchmark in its quick form
	for name in loader step prepare remote evaluation loss guards checkpoint load throughput; do $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

reproduce: .venv/ready  ## the paper's comparisons in small worlds, as docs/results.md has them; goes on where it was stopped
	$(BIN)/lit-cpt worlds --output $(OUT)/worlds --seeds $(WORLDS) --workers 2 --rehearse $(SHARE)
	$(BIN)/lit-cpt worlds --output $(OUT)/worlds --seeds $(filter 0 1 2,$(WORLDS)) --workers 2 --rehearse $(SHARE) \
	  --models early small large moe encoder_decoder
	$(BIN)/lit-cpt ablate $(addprefix ablations/,$(GRIDS)) --set worlds=$(OUT)/worlds --output $(OUT)/lab --workers 2 \
	  --claims docs/preregistration.md --only $(addprefix world=,$(WORLDS)) --rehearse $(SHARE) $(ARGS)

.venv/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "lit_cpt needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv || { \
	  echo "python's venv module is missing (on Debian and Ubuntu: apt-get install python3-venv)."; exit 1; }
	@echo "installing lit_cpt and what it needs into .venv (a few minutes, several GB with torch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" || { \
	  echo "The installation failed; the lines above say why. Usual causes: no connection to a package index (set"; \
	  echo "PIP_INDEX_URL to a mirror), or less than 10 GB of free disk. Then run the same command again."; exit 1; }
	@touch .venv/ready

.venv-oldest/ready: pyproject.toml tests/lower_bounds.py
	rm -rf .venv-oldest && $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python tests/lower_bounds.py > .venv-oldest/bounds.txt
	.venv-oldest/bin/$(PIP) --upgrade pip
	.venv-oldest/bin/$(PIP) -e ".[dev]" -c .venv-oldest/bounds.txt
	@touch .venv-oldest/ready

clean:
	rm -rf .venv .venv-latest .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
