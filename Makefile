# Two commands: `make demo` shows Speculative Prefill at work, `make test` passes the tests. Both set up .venv first.
.PHONY: demo test test-all lint environment

# compilers and ninja that dependencies bring lie beside the cached environment's Python
RUN = PATH="$(CURDIR)/.venv/bin:$$(cat .venv/base)/bin:$$PATH" .venv/bin/python

demo: environment
	$(RUN) -m benchmarks.demo

# two at a time, each file's tests in one process, which share servers
PYTEST = $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10
WORKERS = 2

test: lint
	$(PYTEST)

# more models, strategies and pages of what `make test` shows with one: about an hour longer
test-all: lint
	$(PYTEST) -m "slow or not slow"

lint: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

environment:
	@.ci/environment
