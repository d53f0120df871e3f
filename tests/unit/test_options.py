"""Per-request fields: right ones are read, everything else is refused and named."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.request.options import RequestError, RequestOptions, parse
from specprefill_sgl.selection.rule import Rule

FIELDS = [
    "spec_prefill",
    "spec_prefill_keep_ratio",
    "spec_prefill_min_tokens",
    "spec_prefill_keep_last",
    "spec_prefill_protect",
    "spec_prefill_return_positions",
    "spec_prefill_keep_min",
    "spec_prefill_selection",
    "spec_prefill_window",
    "spec_prefill_over_votes",
    "spec_prefill_pool_kernel",
    "spec_prefill_chunk_size",
    "spec_prefill_ignore_tail",
]


def test_absent_fields_mean_the_servers_values():
    assert parse(None) == parse({"thinking_budget": 3}) == RequestOptions()


def test_all_fields():
    options = parse(
        {
            "spec_prefill": True,
            "spec_prefill_keep_ratio": 1,
            "spec_prefill_min_tokens": 0,
            "spec_prefill_keep_last": 0,
            "spec_prefill_protect": [0, 4, 9, 10],
            "spec_prefill_return_positions": True,
        },
        prompt_tokens=10,
    )
    assert options == RequestOptions(
        enabled=True, keep_ratio=1.0, min_tokens=0, keep_last=0, protect=((0, 4), (9, 10)), return_positions=True
    )


def test_whole_numbers_may_be_written_with_a_point():
    """Protobuf's have one always."""
    options = parse({"spec_prefill_min_tokens": 64.0, "spec_prefill_protect": [0.0, 4.0], "spec_prefill_window": 9.0})
    assert (options.min_tokens, options.protect, options.changes) == (64, ((0, 4),), (("window", 9),))
    assert all(isinstance(number, int) for number in (options.min_tokens, *options.protect[0], options.changes[0][1]))


def test_a_rule_of_ones_own():
    fields = {
        "selection": "paper",
        "window": 32,
        "window_votes": "turns",
        "over_votes": "max",
        "pool_kernel": 5,
        "chunk_size": 16,
        "budget_unit": "tokens",
        "ignore_first": 2,
        "ignore_tail": True,
    }
    options = parse({f"spec_prefill_{name}": value for name, value in fields.items()})
    server = SpecPrefillConfig(draft_model_path="d", lookahead=3, calibrated={"draft": ((1, 2),)})
    del fields["selection"]
    assert options.rule(server) == Rule(**fields)  # of the paper's, not of what the server changed of its own


def test_a_request_changes_the_servers_rule():
    server = SpecPrefillConfig(draft_model_path="d", lookahead=3, window=7, calibrated={"draft": ((1, 2),)})
    rule = parse({"spec_prefill_window": 9}).rule(server)
    assert (rule.lookahead, rule.window, rule.heads, rule.chunk_size) == (3, 9, ((1, 2),), 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spec_prefill", 1),
        ("spec_prefill", "true"),
        ("spec_prefill", None),
        ("spec_prefill_keep_ratio", 0),
        ("spec_prefill_keep_ratio", -0.5),
        ("spec_prefill_keep_ratio", 1.5),
        ("spec_prefill_keep_ratio", math.nan),
        ("spec_prefill_keep_ratio", math.inf),
        ("spec_prefill_keep_ratio", "0.3"),
        ("spec_prefill_keep_ratio", True),
        ("spec_prefill_keep_ratio", 10**400),
        ("spec_prefill_min_tokens", -1),
        ("spec_prefill_min_tokens", 1.5),
        ("spec_prefill_min_tokens", 1e300),
        ("spec_prefill_min_tokens", math.inf),
        ("spec_prefill_min_tokens", 2**31),
        ("spec_prefill_keep_last", -1),
        ("spec_prefill_keep_last", 64.5),
        ("spec_prefill_keep_last", True),
        ("spec_prefill_keep_last", None),
        ("spec_prefill_keep_last", 2**31),
        ("spec_prefill_protect", [1]),
        ("spec_prefill_protect", [4, 4]),
        ("spec_prefill_protect", [-1, 4]),
        ("spec_prefill_protect", [0, 11]),
        ("spec_prefill_protect", {"a": 1}),
        ("spec_prefill_protect", [[0, 4]]),
        ("spec_prefill_return_positions", "yes"),
        ("spec_prefill_keep", 0.5),
        ("spec_prefill_keep_min", 0.0),
        ("spec_prefill_selection", "worst"),
        ("spec_prefill_selection", ["best"]),
        ("spec_prefill_window", -1),
        ("spec_prefill_window", 257),
        ("spec_prefill_window", 1.5),
        ("spec_prefill_window_votes", "alone"),
        ("spec_prefill_over_votes", None),
        ("spec_prefill_pool_kernel", 4),
        ("spec_prefill_pool_kernel", 0),
        ("spec_prefill_pool_kernel", 65),
        ("spec_prefill_chunk_size", 0),
        ("spec_prefill_budget_unit", "words"),
        ("spec_prefill_ignore_first", True),
        ("spec_prefill_ignore_tail", 1),
        ("spec_prefill_lookahead", 4),  # the server's alone: its pools have room for so many
        ("spec_prefill_heads", "file"),
        ("spec_prefill_return_votes", 1),
        ("spec_prefillx", True),
    ],
)
def test_bad_fields_are_named(key, value):
    with pytest.raises(RequestError) as error:
        parse({key: value}, prompt_tokens=10)
    assert str(error.value).split()[0] == key


def test_a_minimum_is_not_above_the_requests_own_ratio():
    with pytest.raises(RequestError, match="spec_prefill_keep_min must be at most spec_prefill_keep_ratio"):
        parse({"spec_prefill_keep_ratio": 0.1, "spec_prefill_keep_min": 0.2})


JSON_VALUES = st.recursive(st.none() | st.booleans() | st.floats() | st.integers() | st.text(), st.lists)


@given(st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES))
def test_what_is_not_refused_is_in_range(params):
    with contextlib.suppress(RequestError):
        options = parse(params, prompt_tokens=100)
        assert options.keep_ratio is None or 0 < options.keep_ratio <= 1
        assert options.keep_last is None or 0 <= options.keep_last < 2**31
        rule = options.rule(SpecPrefillConfig(draft_model_path="d"))
        assert 0 <= rule.window <= 256
        assert rule.pool_kernel % 2 == 1
        assert rule.chunk_size >= 1
        assert rule.over_votes in ("mean", "max")
        assert all(0 <= start < end <= 100 for start, end in options.protect)
