# mmsurgery: everything is set up by the first target that needs it.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp
# A CPU-only Linux machine can take torch from PyTorch's own index: make TORCH_INDEX=URL demo
TORCH_INDEX ?=
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test test-slow test-browser test-releases results bench faults check dist lock clean

$(STAMP): pyproject.toml constraints.txt
	@$(PY) -c 'import sys; sys.exit("mmsurgery needs Python 3.11 or newer; set PY=/path/to/python3.11" if sys.version_info < (3, 11) else 0)'
	@echo "setting up $(VENV) (a minute or two the first time)"
	@test -x $(BIN)/python || $(PY) -m venv $(VENV)
	@if [ -n "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install -q -c constraints.txt torch --index-url $(TORCH_INDEX); fi
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)
	@$(BIN)/mmsurgery demo

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2

test-slow: $(STAMP)
	@$(BIN)/python -m pytest -m slow

# needs Debian's chromium, or another one on the PATH
test-browser: $(STAMP)
	@$(BIN)/python -m pytest -m browser tests/report

# needs the package index: installs transformers 5.10 and 5.18 beside the environment, into .pytest_cache
test-releases: $(STAMP)
	@$(BIN)/python -m pytest -m releases tests/releases

# every table and figure of docs/results.md; hours on two cores, goes on where it was stopped
SEEDS ?= 5
EXPERIMENT = $(BIN)/mmsurgery --workspace results experiment
BOTH = --backbones llava,qwen2_vl
results: $(STAMP)
	@$(BIN)/mmsurgery init results --setting fragile
	@for name in table1 table2 controls cases figure6 ablations; do $(EXPERIMENT) $$name --seeds $(SEEDS) $(BOTH) || exit; done
	@$(EXPERIMENT) figure5 --seeds $(SEEDS)
	@$(EXPERIMENT) figure4 --seeds 3 $(BOTH)
	@$(EXPERIMENT) table1 --seeds $(SEEDS) --tune $(BOTH)
	@$(EXPERIMENT) audit --seeds 3 $(BOTH)
	@$(EXPERIMENT) beyond-tuning --seeds 2 $(BOTH)
	@for name in beyond beyond-equal beyond-masks; do $(EXPERIMENT) $$name --seeds $(SEEDS) $(BOTH) || exit; done
	@$(EXPERIMENT) beyond-ablations --seeds 3 $(BOTH)
	@$(BIN)/mmsurgery --workspace results report
	@$(BIN)/python benchmarks/results_page.py results docs/results.md

# what everything costs beside what it cannot be cheaper than: a table, and build/bench/bench.json; hours on two cores
# (BENCH_ARGS="diff --sizes 1M" for less, "--page docs/performance.md" to publish what was measured)
bench: $(STAMP)
	@$(BIN)/python benchmarks/bench.py $(BENCH_ARGS)

# the long campaigns behind the promises: damaged files, kills, races, failing disks; hours on two cores
# (FAULTS_ARGS="9 --share 0.1" for less)
faults: $(STAMP)
	@$(BIN)/python tests/faults/promises.py $(FAULTS_ARGS)

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

dist: $(STAMP)
	@rm -rf dist
	@PIP_CONSTRAINT= $(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	@ls dist

lock: $(STAMP)
	@$(BIN)/python -m pip freeze --exclude-editable | sed 's/+cpu//' > constraints.txt

clean:
	rm -rf build dist demo results .pytest_cache .mypy_cache .ruff_cache
