# Each target works from nothing: it makes .venv, installs what is needed into it and compiles the kernels.
# PYTHON chooses the Python of a new .venv (make clean removes the old one):  make PYTHON=python3.12 test
# ARGS goes to a benchmark; PEERS is the environment that PyTorch lives in, for nothing else needs it.

PYTHON  ?= python3
BIN     := .venv/bin
BUILT   := .venv/.built

PEERS   ?= .peers
ARGS    ?=

export OPENBLAS_NUM_THREADS ?= 1

DEMO    := runs/demo
RECIPE  := --data python-docs --tokenizer bpe --vocab_size 1024 --n_layer 4 --n_head 4 --n_embd 128 --block_size 128 \
           --batch_size 8 --shards 2 --max_iters 800 --warmup_iters 50 --learning_rate 4e-3 --eval_interval 200 \
           --eval_tokens 10000 --log_interval 50

.PHONY: demo test check lint bench bench-train mutate docs dist-check clean

demo: $(BUILT)                                              # a second time: what is left of the first
	if test -e $(DEMO)/latest; then $(BIN)/pyllama resume $(DEMO); \
	else $(BIN)/pyllama train --out_dir $(DEMO) $(RECIPE); fi
	$(BIN)/pyllama generate --model $(DEMO) --prompt 'The "for" statement' --do_sample --temperature 0.7 \
	    --max_new_tokens 120 --num_samples 3

test: lint
	$(BIN)/python -c "import pyllama.cpu"
	$(BIN)/python -m pytest -n auto

check: test

lint: $(BUILT)
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(BUILT)
	$(BIN)/python -m bench.ops $(ARGS)

bench-train: $(BUILT) $(PEERS)/bin/torchrun
	$(BIN)/python -m bench.train --peers --peers-python $(PEERS)/bin/python $(ARGS)

mutate: $(BUILT)
	$(BIN)/python -m tests.mutate

docs: $(BUILT)
	$(BIN)/python docs/build.py

dist-check:
	PYTHON=$(PYTHON) bash tests/dist_check.sh

clean:
	rm -rf .venv build dist *.egg-info pyllama/cpu.c pyllama/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(PEERS)/bin/torchrun:                                      # it comes with PyTorch
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy

$(BUILT): setup.py pyproject.toml pyllama/cpu.pyx $(wildcard csrc/*.h csrc/cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@$(BIN)/python -c "from pyllama import backend; print(backend.why_no_cpu or f'kernels: {backend.cpu.isa}')"
	@touch $(BUILT)
