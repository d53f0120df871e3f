# Two commands: `make demo` shows Speculative Prefill at work, `make test` passes the tests. Both set up .venv first.
.PHONY: demo test lint environment

# compilers and ninja that dependencies bring lie beside the cached environment's Python
RUN = PATH="$(CURDIR)/.venv/bin:$$(cat .venv/base)/bin:$$PATH" .venv/bin/python

demo: environment
	$(RUN) -m benchmarks.demo

test: lint
	$(RUN) -m pytest

lint: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

environment:
	@.ci/environment
