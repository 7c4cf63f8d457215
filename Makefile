# Each target works from nothing: it makes .venv, installs what it needs into it and compiles the kernels.
# PYTHON chooses the Python of a new .venv (make clean removes the old one):  make PYTHON=python3.12 test
# ARGS goes to a benchmark.  PEERS is an environment of its own for PyTorch, llama.cpp and OpenVINO, CHECKERS one for
# PyTorch, JAX, numba, autograd and mygrad, whose gradients bench-checkers checks; HF5 and HF4 are the Pythons of
# environments with transformers 5 and 4.57, which only check-hf and the golden numbers need.

PYTHON  ?= python3
BIN     := .venv/bin
PIP     := $(BIN)/python -m pip --quiet --disable-pip-version-check
BUILT   := .venv/.built
DEV     := .venv/.dev

PEERS   ?= .peers
CHECKERS ?= .checkers
HF5     ?= .hf5/bin/python
HF4     ?= .hf4/bin/python
ARGS    ?=

export OPENBLAS_NUM_THREADS ?= 1
unexport PYTHONDONTWRITEBYTECODE                         # the tests start a hundred Pythons: each would compile it all

DEMO    := runs/demo
RECIPE  := --data python-docs --tokenizer bpe --vocab_size 1024 --n_layer 4 --n_head 4 --n_embd 128 --block_size 128 \
           --batch_size 8 --shards 2 --max_iters 800 --warmup_iters 50 --learning_rate 4e-3 --eval_interval 200 \
           --eval_tokens 10000 --log_interval 50

.PHONY: demo test check lint bench bench-gemm bench-train bench-decode bench-gpu bench-minilm bench-adapt \
        bench-checkers bench-lean gpu-resources mutate check-hf check-llama-cpp golden sanitize race valgrind cross docs docs-messages docs-test \
        notebooks picture screenshots dist-check clean

demo: $(BUILT)                                              # again: resumes the run if it was stopped
	@echo ".venv takes $$(du -sm .venv | cut -f 1) MB"
	if test -e $(DEMO)/latest; then $(BIN)/pyllama resume $(DEMO); \
	else $(BIN)/pyllama train --out_dir $(DEMO) $(RECIPE); fi
	$(BIN)/pyllama generate --model $(DEMO) --prompt 'The "for" statement' --do_sample --temperature 0.7 \
	    --max_new_tokens 120 --num_samples 3

test: lint
	$(BIN)/python -c "import pyllama.cpu"
	$(BIN)/python -m pytest -n auto

check: test

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/mypy

bench: $(BUILT)
	$(BIN)/python -m bench.ops $(ARGS)
	$(BIN)/python -m bench.optim

bench-gemm: $(BUILT) $(PEERS)/bin/torchrun
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check scipy-openblas32 mkl
	$(BIN)/python -m bench.gemm --peers $(PEERS) $(ARGS)

bench-train: $(BUILT) $(PEERS)/bin/torchrun
	$(BIN)/python -m bench.train --peers --peers-python $(PEERS)/bin/python $(ARGS)

bench-decode: $(BUILT) $(PEERS)/.engines                      # the first time, llama.cpp is compiled: 10 to 20 minutes
	$(BIN)/python -m bench.decode --peers $(PEERS) $(ARGS)

bench-gpu: $(DEV)
	$(BIN)/python -m bench.gpu $(ARGS)

bench-minilm: $(DEV)                                        # skipped where the data or the weights are missing
	$(BIN)/python -m bench.minilm $(ARGS)

bench-adapt: $(DEV) $(PEERS)/.peft                          # half an hour; parts without data are skipped
	$(BIN)/python -m bench.adapt --peers-python $(PEERS)/bin/python $(ARGS)
	$(BIN)/python -m bench.distilling

bench-checkers: $(CHECKERS)/.installed                      # gradcheck on functions of other libraries; docs/checkers.md
	$(CHECKERS)/bin/python -m bench.checkers.third_party $(ARGS)
	$(CHECKERS)/bin/python -m bench.checkers.rules

bench-lean: $(BUILT)                                        # peak memory of the quick start's commands: four minutes
	$(BIN)/python -m bench.lean $(ARGS)

gpu-resources: $(DEV)                                       # registers and memory of every kernel; no GPU
	$(BIN)/python -m bench.gpu_resources $(ARGS)

mutate: $(DEV)
	$(BIN)/python -m tests.mutate
	$(BIN)/python -m tests.mutate --cuda

# Each on a copy of the tree, built with a compiler of its own (CC_...); -DGRAIN=1: small problems use threads too.
CC_sanitize := gcc -g -DGRAIN=1 -fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all \
               -fno-omit-frame-pointer
sanitize: build/sanitize/.built
	cd build/sanitize && export LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" \
	    ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
	    PYTEST_ADDOPTS=--capture=sys PYLLAMA_NUM_THREADS=2; \
	$(CURDIR)/$(BIN)/python -m tests.exercise && $(CURDIR)/$(BIN)/python -m pytest -n auto \
	    -k "not numpy and not resident" tests/test_ops.py tests/test_build.py tests/test_refusals.py \
	    tests/test_variables.py tests/test_memory.py tests/test_threads.py tests/test_stored.py tests/test_decode.py \
	    tests/test_decode_prompts.py

CC_race := clang -g -DGRAIN=1 -fsanitize=thread -Wno-pass-failed
race: build/race/.built
	cd build/race && export LD_PRELOAD="$$(gcc -print-file-name=libtsan.so)" PYTEST_ADDOPTS=--capture=sys \
	    OMP_TOOL_LIBRARIES="$$(clang -print-resource-dir)/../../libarcher.so" PYLLAMA_NUM_THREADS=3 \
	    TSAN_OPTIONS=die_after_fork=0:suppressions=tests/suppressions/race.txt; \
	$(CURDIR)/$(BIN)/python -m tests.exercise && $(CURDIR)/$(BIN)/python -m pytest \
	    -k "bits or same_model or meanwhile" tests/test_threads.py

valgrind: $(BUILT)                                          # valgrind does not support AVX-512
	PYLLAMA_ISA=avx2 PYTHONMALLOC=malloc valgrind --quiet --error-exitcode=1 \
	    --suppressions=tests/suppressions/valgrind.txt $(BIN)/python -m tests.exercise

CC_cross := aarch64-linux-gnu-gcc
cross: build/cross/.built
	cd build/cross && PYTHON=$(CURDIR)/$(BIN)/python bash tests/aarch64.sh

docs: $(DEV)                                               # build/site/en and build/site/zh_CN, to be opened from disk
	$(BIN)/python docs/site/_ext/beforehand.py
	for language in en zh_CN; do \
	    $(BIN)/python -m sphinx -E -q -W -b html -D language=$$language docs/site build/site/$$language || exit 1; done

docs-messages: $(DEV)                                      # the catalogues of the translation; lists what is missing
	$(BIN)/python docs/site/_ext/catalogues.py

docs-test: docs build/node_modules/axe-core                 # in a headless Chromium; the notebooks in full
	PYLLAMA_TEST_BROWSER=1 $(BIN)/python -m pytest -n auto docs/site tests/test_explain_browser.py tests/test_widgets.py
	$(BIN)/python docs/site/_ext/execute.py --check

notebooks: $(DEV)                                           # their outputs, and build/notebooks/*.ipynb: two minutes
	$(BIN)/python docs/site/_ext/execute.py

picture: demo                                               # the README's
	$(BIN)/python docs/picture.py $(DEMO) docs/demo.svg

screenshots: demo docs                                      # the README's screenshots, taken by a headless Chromium
	$(BIN)/python docs/screenshots.py $(DEMO) build/site docs/pictures

check-hf: $(DEV) $(HF5) $(HF4)                              # pyllama and transformers, from each other's folders: three minutes
	$(BIN)/python -m tests.round_trip $(HF5) $(HF4)

check-llama-cpp: $(DEV) $(PEERS)/.engines                   # does llama.cpp read our GGUF files as we do? a minute
	$(BIN)/python -m tests.llama_cpp $(PEERS)/bin/python

golden: $(HF5)                                              # tests/golden/hf*.json and .safetensors, made again
	$(HF5) -m tests.golden.make_hf
	$(HF5) -m tests.golden.make_generate
	$(HF5) -m tests.golden.make_peft                        # needs peft there, too

dist-check:
	bash tests/dist_check.sh $(ARGS)

clean:
	rm -rf .venv build dist *.egg-info pyllama/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis

.hf5/bin/python:
	$(PYTHON) -m venv .hf5
	.hf5/bin/python -m pip install --quiet --disable-pip-version-check torch "transformers>=5,<6"

.hf4/bin/python:
	$(PYTHON) -m venv .hf4
	.hf4/bin/python -m pip install --quiet --disable-pip-version-check torch "transformers>=4.57,<5"

$(PEERS)/bin/torchrun:                                      # it comes with PyTorch
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy

$(PEERS)/.peft: $(PEERS)/bin/torchrun
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check "transformers>=5,<6" peft
	@touch $@

ENGINE_FLAGS := -DGGML_NATIVE=ON -DLLAVA_BUILD=OFF '-DCMAKE_CXX_FLAGS=-include $(CURDIR)/bench/amx.h'
$(PEERS)/.engines: $(PEERS)/bin/torchrun                    # the wheel of llama.cpp is kept, because it takes so long
	test -e $(PEERS)/wheels/llama_cpp_python-*.whl || CMAKE_ARGS="$(ENGINE_FLAGS)" \
	    $(PEERS)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps \
	    --wheel-dir $(PEERS)/wheels llama-cpp-python==0.3.36
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --find-links $(PEERS)/wheels \
	    llama-cpp-python==0.3.36 openvino-genai==2026.4.1.0
	@touch $@

build/node_modules/axe-core:                                # rules of accessibility; skipped without npm
	npm install --silent --no-save --prefix build axe-core@4.11 || mkdir -p $@

$(CHECKERS)/.installed:
	$(PYTHON) -m venv $(CHECKERS)
	$(CHECKERS)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 jax numba autograd mygrad scipy
	@touch $@

build/%/.built: $(DEV) $(wildcard pyllama/*.py pyllama/*/*.py tests/*.py)
	rm -rf $(@D)
	mkdir -p $(@D)
	cp -r csrc pyllama tests setup.py pyproject.toml README.md LICENSE $(@D)
	cd $(@D) && CC="$(CC_$*)" $(CURDIR)/$(BIN)/python -m pip install --quiet --no-deps --upgrade --target . .
	touch $@

$(BUILT): setup.py pyproject.toml pyllama/cpu.pyx $(wildcard csrc/*.h csrc/cpu/*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) install --editable .
	@$(BIN)/python -c "from pyllama import backend; print(backend.why_no_cpu or f'kernels: {backend.cpu.isa}')"
	@touch $@

$(DEV): $(BUILT)                                            # by the installed name, so nothing is built again
	$(PIP) install "pyllama-reference[dev]"
	$(PIP) install "pyllama-reference[test-cuda]" || echo "CuPy or NVRTC cannot be installed: tests of CUDA are skipped"
	@touch $@
