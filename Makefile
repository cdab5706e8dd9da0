# What people type. Every target first makes .venv if it is missing.
#   OVERRIDES="sampler.steps=500 grid.videos=4"   passed on to the command
#   PRIOR=folder   the prior that sampling loads and training exports      DEVICES=n   GPUs
#   SOURCE=bair|sim   train-bair and eval-bair: the real robot's clips, or simulated ones
SHELL := /bin/bash
PYTHON ?= python3
# Torch first and by itself, so that nothing else chooses its build. PyPI's Linux wheel brings several GB of CUDA
# packages; without a GPU: make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
PRIOR ?= data/checkpoints/moving_mnist
DEVICES ?= 1
OVERRIDES ?=
SOURCE ?= bair
RUNS ?= $(patsubst %/results.csv,%,$(wildcard runs/*/results.csv))
BENCH ?=
MNIST := experiments/moving_mnist
VAE ?= $(MNIST)/vae.yaml
DIT ?= $(MNIST)/dit.yaml
SWEEP ?= $(MNIST)/sweep_frames.yaml

PUSHING.bair := bair
PUSHING.sim := push_sim
PUSHING = $(or $(PUSHING.$(SOURCE)),$(error SOURCE=$(SOURCE) is neither bair nor sim))

VENV := .venv
READY := $(VENV)/.ready
SIM_READY := $(VENV)/.ready-sim
VSR := $(VENV)/bin/python -m vsr_lightning

.DEFAULT_GOAL := help
.PHONY: help setup demo demo-sim test test-sim soak lint typecheck check data-mnist data-bair data-sim train-mnist train-bair \
	sweep-frames sweep-aliasing sweep-guidance ablation-vaes ablations oracle eval-bair figures report dashboard bench clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with everything in it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check $(TORCH)
	$(VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# What simulation needs on top. OpenGL's libraries are the system's: apt-get install libosmesa6 libegl1 libgl1
$(SIM_READY): $(READY)
	$(VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,sim]'
	@touch $@

demo: $(READY) ## Super-resolve one video from 1, 3 and 10 frames with the shipped prior (minutes on a CPU)
	$(VSR) sweep $(MNIST)/demo.yaml prior=$(PRIOR) $(OVERRIDES)

demo-sim: PRIOR = data/checkpoints/push_sim
demo-sim: $(SIM_READY) ## Simulate one clip of robot pushing and restore it from 4x and 8x (needs OpenGL's libraries)
	$(VSR) data experiments/push_sim/demo.yaml $(filter data.%,$(OVERRIDES))
	$(VSR) evaluate experiments/push_sim/demo.yaml prior=$(PRIOR) $(OVERRIDES)

test: $(READY) ## Run the tests (minutes on 2 cores)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

test-sim: $(SIM_READY) ## Run the tests of simulated pushing, which need OpenGL's libraries
	OMP_NUM_THREADS=1 LP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 -m sim

soak: $(READY) ## Kill a small sweep 200 times at random moments, and compare with an undisturbed one (minutes)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -s -m soak tests/test_interruption.py tests/test_ddp.py

lint: $(READY) ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

typecheck: $(READY) ## Check types
	$(VENV)/bin/mypy

check: lint typecheck test ## All checks that CI makes

data-mnist: $(READY) ## Fetch and verify MNIST, and the official test sequences where they can be had
	$(VSR) data $(MNIST)/data.yaml $(OVERRIDES)

data-bair: $(READY) ## Download BAIR robot pushing (32 GB), verify it and convert it
	$(VSR) data experiments/bair/data.yaml $(OVERRIDES)

data-sim: $(SIM_READY) ## Simulate robot pushing, the stand-in for BAIR
	$(VSR) data experiments/push_sim/data.yaml $(OVERRIDES)

train-mnist: PRIOR = data/checkpoints/mine
train-mnist: $(READY) ## Train VAE and DiT, export to PRIOR (data/checkpoints/mine); run again to go on where it stopped
	$(VSR) train $(VAE) trainer.devices=$(DEVICES) $(OVERRIDES)
	$(VSR) train $(DIT) trainer.devices=$(DEVICES) $(OVERRIDES)
	$(VSR) export $(DIT) prior=$(PRIOR) $(OVERRIDES)

train-bair: PRIOR = data/checkpoints/mine-$(PUSHING)
train-bair: $(READY) ## Train VAE and DiT on robot pushing (SOURCE=bair or sim), export to PRIOR; run again to go on
	$(VSR) train experiments/$(PUSHING)/vae.yaml trainer.devices=$(DEVICES) $(OVERRIDES)
	$(VSR) train experiments/$(PUSHING)/dit.yaml trainer.devices=$(DEVICES) $(OVERRIDES)
	$(VSR) export experiments/$(PUSHING)/dit.yaml prior=$(PRIOR) $(OVERRIDES)

sweep-frames: $(READY) ## Figs. 2 and 3: PSNR against the number of observed frames
	$(VSR) sweep $(MNIST)/sweep_frames.yaml prior=$(PRIOR) trainer.devices=$(DEVICES) $(OVERRIDES)

sweep-aliasing: $(READY) ## Figs. 4 and 5: PSNR against blur before decimation, 4x and 8x
	$(VSR) sweep $(MNIST)/sweep_aliasing.yaml prior=$(PRIOR) trainer.devices=$(DEVICES) $(OVERRIDES)

sweep-guidance: $(READY) ## Temperature, steps and guidance scale of the sampler, on validation clips
	$(VSR) sweep $(MNIST)/sweep_guidance.yaml prior=$(PRIOR) trainer.devices=$(DEVICES) $(OVERRIDES)

ablation-vaes: $(READY) ## The VAEs with 4 and 16 channels that two of the ablations need
	$(VSR) train $(VAE) name=vae_4 vae.latent_channels=4 $(OVERRIDES)
	$(VSR) train $(VAE) name=vae_16 vae.latent_channels=16 $(OVERRIDES)

ablations: $(READY) ## Variants of the DiT, trained for equal seconds and compared on validation clips
	$(VSR) ablate $(MNIST)/ablations.yaml $(OVERRIDES)

oracle: $(READY) ## What the frame-count sweep's observations allow a method that is told the motion (minutes on a CPU)
	$(VSR) oracle $(MNIST)/sweep_frames.yaml $(OVERRIDES)

# The prior that train-bair made, else the shipped one. A folder is whole once it has its card.
PUSHING_CARDS = $(wildcard $(foreach name,mine-$(PUSHING) $(PUSHING),data/checkpoints/$(name)/card.yaml))
eval-bair: PRIOR = $(firstword $(patsubst %/card.yaml,%,$(PUSHING_CARDS)) data/checkpoints/mine-$(PUSHING))
eval-bair: $(READY) ## Table I, Figs. 6 and 7 on robot pushing (SOURCE=bair or sim) with train-bair's prior, else a shipped one
	$(VSR) evaluate experiments/$(PUSHING)/eval.yaml prior=$(PRIOR) trainer.devices=$(DEVICES) $(OVERRIDES)

figures: $(READY) ## Draw the figures of a finished sweep again (SWEEP=its YAML; the frame-count sweep's)
	$(VSR) figures $(SWEEP) $(OVERRIDES)

report: $(READY) ## One HTML page of the runs in RUNS (all of runs/), to look at without a network
	$(if $(RUNS),,$(error no finished sweep in runs/; name folders, as RUNS=experiments/results/demo))
	$(VSR) report $(RUNS)

dashboard: $(READY) ## Make the W&B workspace of the project (needs an API key)
	$(VSR).dashboard $(OVERRIDES)

bench: $(READY) ## Speed of sampling and training, in sample-steps/s, TFLOP/s and against an eager loop; to experiments/results/bench
	$(VENV)/bin/python tests/bench.py --prior $(PRIOR) $(BENCH)

clean: ## Remove caches and build files; runs and data stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
