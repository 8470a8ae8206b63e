.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
IN_COMPILED := cd build/compiled && ../../$(BIN)/python
COMPILED_TESTS := tests/cli/test_simulate.py tests/client tests/contracts tests/http2 tests/node tests/server tests/store tests/test_clock.py tests/test_ring.py

.PHONY: help run test slow simulate compiled lint types arch unit proto bench-store bench-peers bench-unary bench-membership bench-failover bench-near bench-hot-key demo-stampede tools clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: .venv/run ## Start a three-node cluster on this machine (Ctrl-C stops it)
	@$(BIN)/cacheservice cluster --nodes 3

test: lint types arch unit ## Check style, types, contracts and architecture, and run the test suite

slow: .venv/dev .venv-proto/done .tools/done ## Run the tests that take longer, and those of what is compiled, replays of access logs among them
	$(BIN)/pytest -m "slow and not simulation" --ignore tests/cli/test_simulate.py --numprocesses 4
	$(MAKE) compiled

simulate: .venv/dev ## Run whole clusters in simulation, 800 stories of five minutes (a quarter of an hour; SEEDS=500 for more)
	SEEDS=$(or $(SEEDS),200) $(BIN)/pytest -m simulation --numprocesses 2

unit: .venv/dev .venv-proto/done .tools/done ## Run the test suite alone
	$(BIN)/pytest -m "not slow and not simulation" --numprocesses 3

lint: .venv/dev ## Check style and the proto files
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/buf lint

types: .venv/dev ## Check types
	$(BIN)/mypy

arch: .venv/dev ## Check which part imports which
	$(BIN)/lint-imports

breaking: .venv/dev ## Check that the proto files stay compatible with those committed on main
	$(BIN)/buf breaking --against '.git#branch=main'

proto: .venv-proto/done ## Generate the stubs in cacheservice/v1 from proto/
	.venv-proto/bin/python tests/generate_stubs.py cacheservice/v1

compiled: build/compiled/made ## Compile what every key passes (a minute and a half; needs a C compiler), and run its tests
	export TRACES_DIR="$${TRACES_DIR:-$(CURDIR)/../shared/traces}" && $(IN_COMPILED) -m pytest --numprocesses 3 $(COMPILED_TESTS)

bench-store: build/compiled/made ## Measure the store beside its peers (an hour; needs redis-server)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	$(BIN)/python -m benchmarks.store
	$(IN_COMPILED) -m benchmarks.store_speed

bench-peers: build/compiled/made ## Measure client and nodes beside Redis and others (half an hour; needs redis-server, memcached, nutcracker)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	$(IN_COMPILED) -m benchmarks.peers
	$(IN_COMPILED) -m benchmarks.tail
	$(IN_COMPILED) -m benchmarks.workers

bench-unary: .venv/dev ## Measure a unary Get beside an empty method (a minute; builds ghz, with Go)
	GOBIN="$(CURDIR)/.tools" go install github.com/bojand/ghz/cmd/ghz@v0.121.0
	PATH="$(CURDIR)/.tools:$$PATH" $(BIN)/python -m benchmarks.unary

bench-membership: .venv/dev ## Measure membership in simulation (half an hour)
	$(BIN)/python -m benchmarks.membership

bench-failover: .venv/dev ## Measure what a load notices of kills, beside Redis Cluster, of restarts, scaling and handoff (20 min)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	$(BIN)/python -m benchmarks.failover kills redis rolling handoff --restart-after 10

bench-near: .venv/dev ## Measure the near cache beside others, and how old what it serves may be (3 min; needs redis-server)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	$(BIN)/python -m benchmarks.near_cache

bench-hot-key: .venv/dev ## Measure one key that nearly everybody reads (2 min)
	$(BIN)/python -m benchmarks.hot_key

demo-stampede: .venv/dev ## Show what an origin notices when a hot key expires, without and with protection (two minutes)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[benchmark]'
	$(BIN)/python -m benchmarks.stampede

tools: .tools/done ## Install the Go tools that some tests use

settings: .venv/dev ## Write the table of settings into the README
	$(BIN)/python -m tests.write_settings

clean: ## Remove what these targets have made
	rm -rf .venv .venv-proto .tools build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# Folders, too: of a file that was deleted they alone tell.
build/compiled/made: .venv/dev pyproject.toml README.md $(shell find cacheservice tests benchmarks -name __pycache__ -prune -o -print)
	rm -rf build/compiled && mkdir -p build/compiled
	cp -r pyproject.toml README.md cacheservice tests benchmarks build/compiled
	cd build/compiled && HATCH_BUILD_HOOKS_ENABLE=true ../../$(BIN)/pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@touch $@

.venv/made:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/run: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/dev: .venv/run pyproject.toml
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# The stubs are made with the oldest protobuf that the project supports, which no newer tool can share
# an environment with.
.venv-proto/done: tests/stub_tools.txt
	$(PYTHON) -m venv .venv-proto
	.venv-proto/bin/pip install --quiet --disable-pip-version-check --requirement tests/stub_tools.txt
	@touch $@

.tools/done: tests/integration/go_tools.txt
	@if command -v go > /dev/null; then \
		echo "Building the Go tools" && \
		GOBIN="$(CURDIR)/.tools" xargs -n 1 go install < $< && touch $@; \
	else \
		echo "There is no go on the PATH: tests that need it are skipped"; \
	fi
