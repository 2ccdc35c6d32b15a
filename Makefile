# make demo | test | lint | bench | docs | gpu | cuda-check: each sets .venv up where it is missing and brings the native modules up to date.
#   make demo FIXED=a.nii.gz MOVING=b.nii.gz     registers your own pair (ARGS="--preset ..." adds options)
#   make test ARGS="-k lncc"                     ARGS go to the command behind the target
#   make gpu PYTHON=python                       PYTHON takes an existing environment as it is: nothing is installed
#   make test TORCH_INDEX=URL                    where .venv takes torch from, e.g. an index of CPU builds

PYTHON3 ?= python3
ARGS ?=
TORCH_INDEX ?=

ifdef PYTHON
PY := $(PYTHON)
READY :=
else
PY := .venv/bin/python
READY := .venv/ready
endif

NEURALREG = $(PY) -m neuralreg
# All cores where pytest-xdist is there, which a given PYTHON need not have.
PARALLEL = $(shell $(PY) -c "import importlib.util as u; print('-n auto' if u.find_spec('xdist') else '')")
CPP = $(wildcard csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)

.PHONY: .venv native demo test lint bench docs gpu cuda-check
.DEFAULT_GOAL := test

.venv: .venv/ready

.venv/ready: pyproject.toml setup.py
	test -x .venv/bin/python || $(PYTHON3) -m venv .venv
	.venv/bin/python -m pip install -q --upgrade pip "setuptools>=77" wheel "pybind11>=2.12"
	.venv/bin/python -m pip install -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	.venv/bin/python -m pip install -q --no-build-isolation -e ".[demo,report,itk,x5,dev]"
	touch .venv/ready

# The build itself knows what has changed: with nothing to do it takes a second.
native: $(READY)
	@$(PY) setup.py -q build_ext --inplace

demo: native
ifdef FIXED
	mkdir -p out
	$(NEURALREG) register --fixed "$(FIXED)" --moving "$(MOVING)" --warped-out out/warped.nii.gz \
	    --transform-out out/transform.nii.gz --figure-out out/figure.png --summary out/summary.json $(ARGS)
else
	$(NEURALREG) demo --out out $(ARGS)
endif

test: native
	$(PY) -m pytest -q $(PARALLEL) $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy neuralreg
	$(dir $(shell command -v $(PY)))clang-format --dry-run -Werror $(CPP)

# make bench BENCH="kernels --filter lncc" measures something else; rows and figures are in out/bench.
BENCH ?= all --quick
bench: native
	$(NEURALREG) bench $(BENCH) --out out/bench $(ARGS)
	$(NEURALREG) bench report --results out/bench --out out/bench

# The guides and the reference of the Python names, into site/.
docs: $(READY)
	@$(PY) -c "import mkdocs, mkdocstrings" 2>/dev/null || $(PY) -m pip install -q -e ".[docs]" --no-build-isolation
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict $(ARGS)

# The CUDA module for the machine's own card, or NEURALREG_CUDA_ARCHS=80,90, where there is an nvcc; then the tests
# marked gpu run what serves on the card, and the benchmarks measure it: rows in $OUT, or out/gpu.
NVCC = $(or $(shell command -v nvcc),$(wildcard $(CUDA_HOME)/bin/nvcc))
gpu: $(READY)
	@$(if $(NVCC),,echo "no nvcc found: the cuda backend is left out")
	NEURALREG_CUDA=$(if $(NVCC),1,0) NEURALREG_CUDA_ARCHS=$(or $(NEURALREG_CUDA_ARCHS),native) \
	    $(PY) setup.py -q build_ext --inplace
	@$(PY) -m pytest -q -m gpu $(ARGS) || \
	    { test $$? -eq 5 && echo "no test of this version is marked gpu: nothing has run on a GPU"; }
	@$(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || \
	    { echo "no CUDA device: nothing is measured"; exit 0; }; \
	status=0; for backend in $(if $(NVCC),cuda) triton; do for suite in kernels iteration; do \
	    $(NEURALREG) bench $$suite --device cuda --backend $$backend --out "$${OUT:-out/gpu}" || status=1; \
	done; done; exit $$status

# Compiles every kernel for three architectures and prints registers and spills; no GPU is needed.
cuda-check:
	$(if $(PYTHON),$(PYTHON),$(PYTHON3)) csrc/build_cuda.py
