"""Methods: what is refused before one is loaded, by the flag's name."""

import pytest

from benchmarks.quality import control_methods
from specprefill_sgl.config import ConfigError, SpecPrefillConfig, resolve
from specprefill_sgl.hooks.usable import check_usable
from specprefill_sgl.methods import registry
from specprefill_sgl.request.options import RequestError, RequestOptions


@pytest.fixture(autouse=True)
def controls(monkeypatch):
    """The bench's methods read no flags; what a plugin adds is known by name."""
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    monkeypatch.setattr(control_methods, "METHODS", registry.METHODS)
    control_methods.register()


def test_the_first_method_is_the_default():
    config = resolve({"enabled": True, "draft_model_path": "d", "method": "draft, bm25"})
    assert config.method == ("draft", "bm25")
    registry.check(config)


def test_a_method_that_needs_no_draft_needs_no_draft():
    registry.check(resolve({"enabled": True, "method": "bm25"}))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": ("oracle",)}, "--spec-prefill-method oracle is unknown; known are draft"),
        ({}, "--spec-prefill-method draft needs --spec-prefill-draft-model-path"),
        ({"method": ("early-layers",)}, "--spec-prefill-method early-layers needs --spec-prefill-layers"),
        ({"draft_model_path": "d", "layers": 4}, "--spec-prefill-layers has no effect with --spec-prefill-method draft"),
        ({"method": ("early-layers",), "layers": 4, "draft_model_path": "d"}, "--spec-prefill-draft-model-path has no effect"),
        ({"method": ("bm25",), "draft_model_path": "d"}, "--spec-prefill-draft-model-path has no effect"),
        ({"method": ("bm25",), "heads": ("file",)}, "--spec-prefill-heads has no effect with --spec-prefill-method bm25"),
        ({"method": ("bm25", "random"), "draft_max_tokens": 99}, "--spec-prefill-draft-max-tokens has no effect"),
        ({"method": ("lazy",), "layers": (2,), "backfill_decodes": 4}, "--spec-prefill-backfill-decodes has no effect"),
    ],
)
def test_what_no_method_reads_and_what_one_lacks_is_refused(given, said):
    with pytest.raises(ConfigError) as error:
        registry.check(SpecPrefillConfig(**given))
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(("method", "field", "value"), [("lazy", "backfill", "turn"), ("kv-prediction", "revive_every", 3)])
def test_nor_may_a_request_ask_for_what_its_method_does_not_read(resolved, method, field, value):
    """Of a server that loads another method which does."""
    config = SpecPrefillConfig(method=("draft", method))
    check_usable(RequestOptions(**{field: value}), config, resolved(""))
    with pytest.raises(RequestError, match=f"spec_prefill_{field} cannot be used with the method {method}: it has no effect"):
        check_usable(RequestOptions(method=method, **{field: value}), config, resolved(""))


@pytest.mark.parametrize("method", ["draft,draft", ""])
def test_names_are_given_once(method):
    with pytest.raises(ConfigError, match="--spec-prefill-method"):
        registry.check(resolve({"enabled": True, "draft_model_path": "d", "method": method}))


def test_where_nothing_is_read_no_method_lacks_anything():
    registry.check(SpecPrefillConfig(method=("draft", "early-layers")), loads=False)
    with pytest.raises(ConfigError, match="is unknown"):
        registry.check(SpecPrefillConfig(method=("oracle",)), loads=False)
