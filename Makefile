# What people type. Every target first makes .venv if it is missing.
#   OVERRIDES="sampler.steps=500 grid.videos=4"   passed on to the command
#   PRIOR=folder   the prior that sampling loads and training exports      DEVICES=n   GPUs
SHELL := /bin/bash
PYTHON ?= python3
# Torch first and by itself, so that nothing else chooses its build. PyPI's Linux wheel brings several GB of CUDA
# packages; without a GPU: make setup TORCH="torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"
TORCH ?= torch==2.13.0
PRIOR ?= data/checkpoints/moving_mnist
DEVICES ?= 1
OVERRIDES ?=
MNIST := experiments/moving_mnist
VAE ?= $(MNIST)/vae.yaml
DIT ?= $(MNIST)/dit.yaml

VENV := .venv
READY := $(VENV)/.ready
VSR := $(VENV)/bin/python -m vsr_lightning

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint typecheck check data-mnist train-mnist sweep-frames figures clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with everything in it

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install -q --disable-pip-version-check $(TORCH)
	$(VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY) ## Super-resolve one video from 1, 3 and 10 frames with the shipped prior (minutes on a CPU)
	$(VSR) sweep $(MNIST)/demo.yaml prior=$(PRIOR) $(OVERRIDES)

test: $(READY) ## Run the tests (minutes on 2 cores)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n 2 --dist loadfile

lint: $(READY) ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

typecheck: $(READY) ## Check types
	$(VENV)/bin/mypy

check: lint typecheck test ## All checks that CI makes

data-mnist: $(READY) ## Fetch and verify MNIST, and the official test sequences where they can be had
	$(VSR) data $(MNIST)/data.yaml $(OVERRIDES)

train-mnist: PRIOR = data/checkpoints/mine
train-mnist: $(READY) ## Train VAE and DiT, export to PRIOR (data/checkpoints/mine); run again to go on where it stopped
	$(VSR) train $(VAE) trainer.devices=$(DEVICES) $(OVERRIDES)
	$(VSR) train $(DIT) trainer.devices=$(DEVICES) $(OVERRIDES)
	$(VSR) export $(DIT) prior=$(PRIOR) $(OVERRIDES)

sweep-frames: $(READY) ## Figs. 2 and 3: PSNR against the number of observed frames
	$(VSR) sweep $(MNIST)/sweep_frames.yaml prior=$(PRIOR) trainer.devices=$(DEVICES) $(OVERRIDES)

figures: $(READY) ## Draw the figures of the finished frame-count sweep again
	$(VSR) figures $(MNIST)/sweep_frames.yaml prior=$(PRIOR) $(OVERRIDES)

clean: ## Remove caches and build files; runs and data stay
	rm -rf .mypy_cache .ruff_cache .pytest_cache *.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
