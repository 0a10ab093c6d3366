# Every target begins with `setup`, so any of them can be the first command after `git clone`.
# In the active conda environment `workbench` that environment is used, else `.venv`.
PYTHON ?= python3
TORCH  ?= auto
ENV    := $(if $(filter workbench,$(CONDA_DEFAULT_ENV)),$(CONDA_PREFIX),$(CURDIR)/.venv)
RUN    := $(ENV)/bin/python
# one thread to a process, two processes: for two cores; on more: make test WORKERS=8
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS)
STRIP  := --keep-id --extra-keys "metadata.papermill cell.metadata.papermill"
BOOKS   = $(wildcard notebooks/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-crash test-distributed test-slurm test-browser test-gpu sanitize parity lint fix size lab bench clean

help:       ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:      ## make .venv and install into it; nothing to do when nothing changed
	@TORCH=$(TORCH) $(PYTHON) .ci/setup_env.py $(ENV)

demo: setup ## train and look at two small models: notebooks and a report in runs/demo
	@$(RUN) -m workbench.demo

test: setup ## the tests that need neither a GPU nor minutes each
	@$(PYTEST) -m "not slow and not gpu and not crash and not slurm and not browser" $(ARGS)

test-slow: setup ## the long tests, and those that need an NVIDIA GPU where there is one
	@$(PYTEST) -m "slow or gpu" $(ARGS)

# another seed each time, which is printed; the same kills again: ARGS="--crash-seed 7"
test-crash: setup ## kill training over a hundred times; show that it ends as if undisturbed
	@$(PYTEST) tests/crash $(ARGS)

# the first lines are the law's table: what differs between one process and several
test-distributed: setup ## several processes that train together: laws, restarts, signals
	@$(PYTEST) -rP -m distributed $(ARGS)

# needs root and Debian's packages slurm-wlm and munge; without them the status is 77 (make's own: 2)
test-slurm: setup ## training and sweeps on a Slurm that is started for them, and stopped after
	@$(RUN) tests/slurm/mini_cluster.py
	@OMP_NUM_THREADS=1 $(RUN) -m pytest tests/slurm -m slurm $(ARGS)

# DEMO=runs/demo opens what `make demo` trained; ARGS=--screenshots stores pictures of each view.
# Wants Debian's packages chromium and fonts-dejavu-core; without them the status is 77 (make's own: 2)
test-browser: setup ## the notebooks in a real JupyterLab, in a real browser
	@$(RUN) tests/browser/chromium.py
	@$(PYTHON) .ci/setup_env.py $(ENV) browser
	@OMP_NUM_THREADS=1 $(RUN) -m pytest tests/browser -m browser -s $(if $(DEMO),--demo "$(DEMO)") $(ARGS)

# runs/gpu.txt is the record: device, versions, every error against float64
test-gpu: setup ## everything that needs an NVIDIA GPU, with its record in runs/gpu.txt
	@mkdir -p runs; nvidia-smi --query-gpu=name,driver_version --format=csv,noheader > runs/gpu.txt
	@$(RUN) -m torch.utils.collect_env | grep -iE "torch|cuda|nvidia|python version" >> runs/gpu.txt
	@$(RUN) -m pytest -v -rP -m gpu $(ARGS) >> runs/gpu.txt; status=$$?; cat runs/gpu.txt; exit $$status

# memcheck finds stray accesses, racecheck missing barriers; the sizes are small
sanitize: setup ## the GPU kernels under NVIDIA's compute-sanitizer
	@for tool in memcheck racecheck synccheck; do compute-sanitizer --tool $$tool --error-exitcode 1 \
	  --target-processes all $(RUN) -m pytest -q -m gpu -k small tests/kernels || exit 1; done

parity: setup ## compare with the papers' numbers, table in runs/parity.md (GOLDEN=DIR: other files)
	@$(PYTEST) tests/parity --parity-report runs/parity.md $(if $(GOLDEN),--golden "$(GOLDEN)") $(ARGS)

lint: setup ## style, types, notebooks without outputs
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(if $(BOOKS),$(RUN) -m nbstripout $(STRIP) --verify $(BOOKS),true)

fix: setup  ## mend what `lint` can mend by itself
	@$(RUN) -m ruff check --fix . ; $(RUN) -m ruff format .
	@$(if $(BOOKS),$(RUN) -m nbstripout $(STRIP) $(BOOKS),true)

size:       ## lines by part against their targets
	@$(PYTHON) tests/size.py

# the environment's own `python3` kernel comes first, whatever else the user has registered;
# PyTorch's threads wait briefly before they sleep: the browser needs the same cores
lab: setup  ## JupyterLab in notebooks/
	@GOMP_SPINCOUNT=$${GOMP_SPINCOUNT:-2000} JUPYTER_PREFER_ENV_PATH=1 JUPYTER_PATH="$(ENV)/share/jupyter:$$JUPYTER_PATH" \
	  $(RUN) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(ARGS)

bench: setup ## ops and models beside their peers: targets, the rest up to 9 minutes; QUICK=1: 1; PEERS=0: fetch none
	@[ "$(PEERS)" = 0 ] || $(RUN) tests/bench/install_peers.py
	@PYTHONPATH=tests $(RUN) -m bench $(if $(QUICK),--quick) $(if $(MODELS),--models) $(ARGS)

clean:      ## remove .venv, caches and builds; runs/ stays
	rm -rf .venv .setup build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
