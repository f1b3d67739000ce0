# `make demo`, `make check` and `make test` need Python 3.11 or later and nothing else: each makes the environment it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The versions that are installed; constraints-oldest.txt has the oldest ones, best in a VENV of its own.
CONSTRAINTS := constraints.txt

.PHONY: demo check fast test test-all stock recipes docs package lint format results evidence clean

demo: $(READY)
	$(BIN)/immiscible demo

# Two processes of one thread each: threads of several processes on few cores hold each other up.
# Compiled tests are kept, whatever the environment says: to rewrite their assertions takes half of the start.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

# While one works: format, lint, types and the tests that are not marked medium or slow, side by side.
check: $(READY)
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target lint fast

fast: $(READY)
	$(PYTEST) -q -m "not medium and not slow and not gpu and not network" tests

test: $(READY)
	$(PYTEST)

# Tests with other people's trainers are skipped unless these are installed: `.venv/bin/pip install -e '.[hosts]'` before it.
test-all: $(READY) lint
	$(PYTEST) -m "not gpu and not network"

# The recipes with the packages that they are about, beside the environment and not in it: their own requirements are many.
HOSTS := build/hosts
HOST_PACKAGES := torchcfm flow-matching smalldiffusion denoising-diffusion-pytorch rectified-flow-pytorch k-diffusion lightning jax \
  jaxlib ml_dtypes opt_einsum torchvision einops einx frozendict loguru ema-pytorch pytorch-fid torchdiffeq torchsde trampoline dctorch \
  clean-fid clip-anytorch ftfy wcwidth regex wandb jsonmerge jsonschema attrs referencing rpds-py jsonschema-specifications \
  scikit-image lazy-loader imageio tifffile lightning-utilities pytorch-lightning torchmetrics hyper-connections x-mlps-pytorch \
  assoc-scan x-unet x-transformers torch-einops-utils discrete-continuous-embed-readout vector-quantize-pytorch POT accelerate 'setuptools<80'
recipes: $(READY)
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(HOSTS) $(HOST_PACKAGES)
	PYTHONPATH=$(HOSTS) $(BIN)/pytest -q -m "" -rs tests/recipes

# The documentation site, build/site; its tools stand beside the environment: the library needs none of them.
SITE := build/docs
docs: $(SITE)/.ready
	NO_MKDOCS_2_WARNING=1 $(SITE)/.venv/bin/mkdocs build

DOCS_EXTRA := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"], sep="\n")
$(SITE)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)/.venv
	$(PYTHON) -c '$(DOCS_EXTRA)' > $(SITE)/requirements.txt
	$(SITE)/.venv/bin/pip install --quiet --constraint constraints.txt --requirement $(SITE)/requirements.txt
	touch $@

# What stock diffusers draws from our exports, in an environment that has never had this package.
stock: $(READY)
	rm -rf build/stock && mkdir -p build/stock
	$(BIN)/python tests/stock.py make build/stock
	$(PYTHON) -m venv build/stock/.venv
	build/stock/.venv/bin/pip install --quiet --constraint constraints.txt torch diffusers transformers
	cd build/stock && .venv/bin/python ../../tests/stock.py check .

# dist/: the wheel and the source archive, tested; then the wheel alone, in an environment that has nothing else.
package: $(READY)
	rm -rf dist build/package
	$(BIN)/pytest -q -m "" tests/test_package.py
	$(BIN)/python -m hatchling build
	$(PYTHON) -m venv build/package
	build/package/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd build/package && bin/python -c \
	  'import torch; from immiscible_diffusion import couple; assert couple(torch.randn(64, 3, 8, 8)).shape == (64, 3, 8, 8)'

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

results: $(READY)
	$(BIN)/immiscible train demo
	$(BIN)/immiscible report runs/demo --record results/demo
	$(BIN)/python -m studies pages

# The papers' tables and figures at the scale cpu, on CIFAR-10 of one's own; it goes on where it was cut.
CIFAR10 := data/cifar10
INCEPTION := data/inception.safetensors
EXPERIMENTS := few-steps-flow few-steps-couplings few-steps-ddim few-steps-data-sets few-steps-consistency consistency-recipes \
  few-steps-times few-steps-dimension few-steps-settings knn-sweep fig4a-table3-consistency fig5-table4-ddim fig7-ablation \
  table5-norm nearest-start image-scale fig8-batch few-steps-16-pixels few-steps-16-pixels-eps \
  few-steps-16-pixels-consistency
evidence: $(READY)
	for name in $(EXPERIMENTS); do \
	  reuse=$$(for done in $(EXPERIMENTS); do [ $$done = $$name ] && break; printf -- '--reuse runs/cpu/%s ' $$done; done); \
	  OMP_NUM_THREADS=1 $(BIN)/immiscible train $$name --scale cpu --out runs/cpu --workers 2 $$reuse \
	    --set source.path=$(CIFAR10) || exit; \
	  $(BIN)/immiscible report runs/cpu/$$name --record results/$$name/cpu || exit; \
	done
	$(BIN)/python -m studies draw levels runs/cpu/few-steps-consistency --out results/figures
	$(BIN)/python -m studies draw perturbation runs/cpu/few-steps-ddim --out results/figures
	$(BIN)/python -m studies draw denoising runs/cpu/fig5-table4-ddim --out results/fig5-table4-ddim/cpu
	$(BIN)/python -m studies draw miscibility --source '{use="images", path="$(CIFAR10)"}' --codec '{use="pixels", mean=120.7, std=64.2}' \
	  --points 10000 --out results/figures
	$(BIN)/python -m studies papers --page docs/papers.md
	$(BIN)/python -m studies pages

$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; try make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs dist build .mypy_cache .ruff_cache .pytest_cache

# Small runs killed at random moments, in one and two processes: each must end as an uninterrupted one does.
.PHONY: chaos
KILLS := 20
chaos: $(READY)
	$(BIN)/python -m benchmarks chaos --kills $(KILLS)

# What a bare machine with a GPU needs beside this tree, at most 60 MiB together; see docs/gpu.md.
.PHONY: gpu-pack
EARLIER :=
gpu-pack: $(READY)
	$(BIN)/python -m benchmarks gpu-pack --cifar10 $(CIFAR10) --inception $(INCEPTION) $(if $(EARLIER),--earlier $(EARLIER))
