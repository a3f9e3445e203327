# `make help` lists the verbs. Everything lives in .venv; state lives in var/.
PYTHON ?= python3
BIN := .venv/bin
SHELL := /bin/sh
SOAK_MINUTES ?= 30
.DEFAULT_GOAL := help
.PHONY: help run test test-clients lint format lock clean bench-relay bench-engine bench-embed bench-retrieval bench-admission bench-peers soak guide guide-eval

help: ## list the verbs
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1|\2/' | column -t -s '|' 2>/dev/null \
	  || grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST)

run: .venv/run.stamp ## install, prepare the models, start on 127.0.0.1:8000
	@exec $(BIN)/chasqui serve --prepare

test: .venv/dev.stamp ## install what tests need and run all of them
	@$(BIN)/chasqui models prepare --quiet
	@$(BIN)/python -m pytest

test-clients: .venv/dev.stamp .venv-clients/stamp ## LangChain and LlamaIndex, unmodified, against a real gateway
	@$(BIN)/chasqui models prepare --quiet
	@$(BIN)/python -m tests.sdk.run .venv-clients/bin/python

lint: .venv/dev.stamp ## ruff, mypy, import-linter, size ceilings
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m tests.house.sizes

bench-relay: .venv/dev.stamp ## what the gateway adds to a relayed request, beside nginx and its peers (needs wrk)
	@$(BIN)/python -m tests.bench.relay

bench-engine: .venv/dev.stamp ## local models: this worker, llama-server where it is on PATH, and llama-cpp-python's server
	@$(BIN)/python -m tests.bench.engine

bench-admission: .venv/dev.stamp ## what it costs to keep the limits, in memory and in Redis
	@$(BIN)/python -m tests.bench.admission

bench-embed: .venv/dev.stamp ## what the embedding cache is worth: hits, misses, a million entries
	@$(BIN)/chasqui models prepare --quiet
	@$(BIN)/python -m tests.bench.embed

bench-retrieval: .venv/dev.stamp ## searches over 100,000 chunks, with and without a filter; filling a collection beside the engine alone
	@$(BIN)/chasqui models prepare --quiet
	@$(BIN)/python -m tests.bench.retrieval

soak: .venv/dev.stamp ## half load for SOAK_MINUTES (30): memory, descriptors and tasks of the gateway must not grow
	@SOAK_MINUTES=$(SOAK_MINUTES) $(BIN)/python -m tests.bench.soak

bench-peers: .venv-bench/litellm.stamp .venv-bench/portkey.stamp .venv-bench/llama.stamp ## install what the benchmarks compare with (needs npm)

guide-eval: .venv/dev.stamp ## how often the shipped guide answers wordings it has never seen
	@$(BIN)/python -m tests.guide

guide: ## train guide anew: about 25 minutes on two cores, PyTorch in .venv-guide
	@test -x .venv-guide/bin/python || $(PYTHON) -m venv .venv-guide
	@.venv-guide/bin/pip install -q -r config/models/guide/requirements.txt
	@.venv-guide/bin/python config/models/guide/train.py

format: .venv/dev.stamp ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: .venv/dev.stamp ## resolve pyproject.toml into the lock files (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" pyproject.toml -o requirements.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" -c requirements.lock --group dev -o requirements-dev.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" -c requirements.lock --group build -o requirements-build.lock
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" --group clients -o requirements-clients.lock

clean: ## remove .venv, .venv-bench, .venv-clients and caches (var/ stays)
	rm -rf .venv .venv-bench .venv-clients .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.venv/run.stamp: requirements.lock requirements-build.lock gateway/install.py backends/llamacpp/build.cmake
	@$(PYTHON) -P gateway/install.py requirements.lock
	@touch $@

.venv/dev.stamp: .venv/run.stamp requirements-dev.lock
	@$(PYTHON) -P gateway/install.py requirements.lock requirements-dev.lock
	@touch $@

.venv-clients/stamp: requirements-clients.lock
	@echo "installing the client libraries that are tested ..."
	@$(PYTHON) -m venv .venv-clients
	@.venv-clients/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r $<
	@touch $@

.venv-bench/litellm.stamp: tests/bench/litellm.txt
	@$(PYTHON) -m venv .venv-bench/litellm
	@.venv-bench/litellm/bin/python -m pip --disable-pip-version-check install -q -r $<
	@touch $@

# llama-cpp-python itself is the one that is compiled in .venv.
.venv-bench/llama.stamp: tests/bench/llama.txt .venv/run.stamp
	@$(PYTHON) -m venv .venv-bench/llama
	@.venv-bench/llama/bin/python -m pip --disable-pip-version-check install -q -r $<
	@.venv-bench/llama/bin/python -c "import site, sys; open(site.getsitepackages()[0] + '/llama.pth', 'w').write(sys.argv[1])" \
	  "$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])')"
	@touch $@

# No lock file is kept: it would name the registry's address. No scripts run: Portkey's one does nothing.
.venv-bench/portkey.stamp: tests/bench/portkey/package.json
	@mkdir -p .venv-bench/portkey
	@cp $< .venv-bench/portkey/package.json
	@npm install --prefix .venv-bench/portkey --no-package-lock --ignore-scripts --no-audit --no-fund --loglevel=error
	@touch $@
