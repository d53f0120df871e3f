# Two commands: `make demo` shows Speculative Prefill at work, `make test` passes the tests. Both set up .venv first.
.PHONY: demo test test-all test-release release gpu lint docs environment

RELEASE = 0.5.22
OLDER = $${XDG_CACHE_HOME:-$$HOME/.cache}/specprefill-sgl/sglang-$(RELEASE)
# compilers and ninja that dependencies bring lie beside the cached environment's Python
RUN = PATH="$(CURDIR)/.venv/bin:$$(cat .venv/base)/bin:$$PATH" .venv/bin/python

demo: environment
	$(RUN) -m benchmarks.demo

# two at a time, each file's tests in one process, which share servers; more threads would only wait for each other
PYTEST = OMP_NUM_THREADS=1 $(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 10
WORKERS = 2

test: lint docs
	$(PYTEST)

# more models, strategies and pages of what `make test` shows with one: about an hour longer
test-all: lint release
	$(PYTEST) -m "slow or not slow"

# the plugin on an older tested release of SGLang, then the same with that release's patches and no plugin
# without a GPU that one serves on one rank only; of lazy's tests on one rank all are slow
test-release: lint release
	PYTHONPATH=$(OLDER) $(RUN) -m pytest tests/contract tests/e2e/test_reference.py tests/e2e/test_radix_cache.py \
	    tests/e2e/test_kv_prediction.py::test_published_kv_is_what_the_predictor_says
	PYTHONPATH=$(OLDER) $(RUN) -m pytest -m slow tests/e2e/test_lazy.py -k "reference and llama and not ranks and not overlap"
	$(RUN) -m patches.verify $(RELEASE)

# on a machine with a GPU: does it work there? Then the tests that need one
gpu: environment
	$(RUN) -m specprefill_sgl doctor; status=$$?; \
	$(RUN) -m pytest tests/gpu tests/unit/test_triton_scoring.py && exit $$status

# its package alone, beside the cached dependencies of the newest one
release: environment
	@test -d $(OLDER)/sglang || $$(cat .venv/base)/bin/python -m pip install --quiet --disable-pip-version-check \
	    --no-deps --target $(OLDER) sglang==$(RELEASE)

lint: environment
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

# the pages are plain Markdown; this renders them to build/site and fails on a broken link
docs: environment
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict --quiet

environment:
	@.ci/environment
