# `make demo` and `make test` set everything up by themselves; they need Python 3.11 or newer with pip, nothing else.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt --editable
RUN := .venv/.run
READY := .venv/.ready
DEMO_OUT ?= demo-out

help:  ## Say what there is.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 15

demo: $(RUN)  ## Annotate drawn scenes, score them, train with and without patch loss: three minutes, no network.
	@if [ -f $(DEMO_OUT)/.pad-demo ]; then rm -rf $(DEMO_OUT); fi  # only what an earlier demo made
	$(BIN)/pad demo --out $(DEMO_OUT)

test: $(READY) lint  ## Check formatting, lint, types, then run the fast tests: about ten minutes.
	@echo "== Tests (a summary comes at the end)"
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(READY)  ## Run what `make test` leaves out: kills, Ray clusters, whole processes, the README: six minutes.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "slow and not long"

test-long: $(READY)  ## Run what CI has no time for: every page of the documentation, all recipes, nodes that a training loses.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m long

test-browser: $(READY)  ## Open reports in Chromium (skipped where there is none): a minute.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m browser -rs tests/sharing

chaos: $(READY)  ## Kill 200 runs on each engine at random times, resume them, compare bytes: an hour.
	$(BIN)/python -m tests.chaos --engine local --kills 200
	$(BIN)/python -m tests.chaos --engine local --isolated --kills 20
	$(BIN)/python -m tests.chaos --engine ray --kills 200

chaos-cluster: $(READY)  ## 30 runs on Ray clusters whose nodes join, leave and die, compare bytes: half an hour.
	$(BIN)/python -m tests.cluster_chaos --histories 30

chaos-store: $(READY)  ## Let an object store fail in 200 random ways, compare bytes: half an hour.
	$(BIN)/python -m tests.store_chaos --histories 200

PAPER := $(or $(OUT),paper-out)
PAPER_SHARDS := --shards $(PAPER)/shards --heldout $(PAPER)/probes
paper: $(RUN)  ## The paper in the miniature: five seeds of both stages, three objectives, tables and plots: half an hour, resumable.
	$(BIN)/pad miniature draw --count 2000 --out $(PAPER)/world
	$(BIN)/pad build --images $(PAPER)/world/llava.json --image-root $(PAPER)/world/images --models miniature \
	  --limit 384 --shard-size 64 --engine local --out $(PAPER)/shards
	$(BIN)/pad miniature draw --count 100 --seed 1 --out $(PAPER)/probe-world
	$(BIN)/pad import coco --annotations $(PAPER)/probe-world/instances.json --images $(PAPER)/probe-world/images \
	  --captions $(PAPER)/probe-world/llava.json --models miniature --shard-size 64 --engine local \
	  --out $(PAPER)/probes
	$(BIN)/pad experiment miniature $(PAPER_SHARDS) --data $(PAPER)/world/llava_refer.json \
	  --image-root $(PAPER)/world/images --engine ray --out $(PAPER)/compare
	$(BIN)/python -m benchmarks.paper $(PAPER) --results $(PAPER)
	$(BIN)/pad analyze align --model "$(PAPER)/compare/captions alone-0/stage1" --beside $(PAPER)/compare/paper-0/stage1 \
	  --beside $(PAPER)/compare/aligned-0/stage1 --shards $(PAPER)/probes --limit 8 --drawings 4 --out $(PAPER)/words

paper-grids: paper  ## Beside `make paper`: grids over beta, the choices of L_patch and the steps, stage 1 alone: two hours.
	$(BIN)/pad experiment miniature-beta $(PAPER_SHARDS) --vision miniature --llm miniature --engine ray --out $(PAPER)/beta
	$(BIN)/pad experiment miniature-objective $(PAPER_SHARDS) --engine ray --out $(PAPER)/objective
	$(BIN)/pad experiment miniature-steps $(PAPER_SHARDS) --engine ray --out $(PAPER)/steps
	$(BIN)/python -m benchmarks.paper $(PAPER) --results $(PAPER)

bench: $(READY)  ## Compare the annotation stages with a plain loop, technique by technique: a few minutes.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.annotate $(if $(OUT),--out $(OUT))

bench-steps: $(READY)  ## Compare single steps of the stages with the usual way: a minute.
	$(BIN)/python -m benchmarks.steps

bench-engines: $(READY)  ## Compare a bare loop, the local engine and Ray: a few minutes.
	$(BIN)/python -m benchmarks.engines

bench-memory: $(READY)  ## Memory of each model at official size, in both precisions: ten minutes and 10 GB.
	$(BIN)/python -m benchmarks.memory

bench-plan: $(READY)  ## Time and memory of planning 1 and 10 million images, and of a resume: a quarter of an hour.
	$(BIN)/python -m benchmarks.plan

bench-scale: $(READY)  ## What 100 million images take of the driver and of readers, extended from small sizes: ten minutes.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.scale_reading

bench-stage1: $(READY)  ## Time stage 1, technique by technique; on a GPU at LLaVA-7B's size with SIZE=7b.
	$(BIN)/python -m benchmarks.stage1 --size $(or $(SIZE),tiny)

bench-gpu: $(READY)  ## On a GPU: correctness, rates, profiles, the whole chain, stage 1, analyses: nine minutes, results in OUT.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.gpu --minutes $(or $(MINUTES),9) --out $(or $(OUT),gpu-out)

bench-loader: $(READY)  ## Compare the trainer's loader with plain webdataset on the same shards: two minutes.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.loader

bench-analyses: $(READY)  ## Time and memory of the analyses, 10,000 images at 576 tokens each: half an hour.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.analyses

bench-pursuit: $(READY)  ## Time and memory of matching pursuit at the size of real LLMs: an hour and 10 GB.
	$(BIN)/python -m benchmarks.pursuit
	$(BIN)/python -m benchmarks.pursuit --words 128256 151936 --images 3 --kinds alike --forms plain

bench-retarget: $(READY)  ## Images a second of pad retarget and pad filter: two minutes.
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m benchmarks.retarget

docs: $(READY)  ## Make the site of the documentation, in site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

release: $(READY)  ## Build the tagged version into dist/, check it, and try it in an empty environment: ten minutes.
	.ci/release

lint: $(READY)  ## Check formatting, lint and types.
	@echo "== Formatting, lint, types"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove the environment and the tools' caches.
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, and '$(PYTHON)' is older or missing. Try: make PYTHON=python3.12 demo"; exit 1; }
	@echo "== Setting up .venv: 6.5 GB, most of it PyTorch; a few minutes, once"
	$(PYTHON) -m venv .venv
	$(INSTALL) .
	@touch $(RUN)

$(READY): $(RUN)
	@echo "== Adding the development tools: 1 GB"
	$(INSTALL) '.[dev]'
	@touch $(READY)

.PHONY: docs help release demo test test-all test-long test-browser bench bench-steps bench-engines bench-memory bench-plan bench-scale bench-loader bench-stage1 bench-gpu bench-analyses bench-pursuit bench-retarget paper paper-grids chaos chaos-cluster chaos-store lint format clean
