"""Under a backlog the keep ratio falls by the documented rule, never below the minimum, and says why."""

import pytest

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.request.backlog import keep
from specprefill_sgl.request.options import RequestOptions


def _config(**values):
    return SpecPrefillConfig(draft_model_path="d", **values)


@pytest.mark.parametrize(
    ("waiting", "ratio", "reason"),
    [
        (1, 0.2, "server"),
        (8, 0.2, "server"),
        (10, 0.15, "backlog"),  # 8 / 10, rounded down to 6 / 8
        (11, 0.125, "backlog"),
        (16, 0.1, "backlog"),
        (17, 0.1, "backlog"),
        (999, 0.1, "backlog"),
    ],
)
def test_it_falls_with_the_queue_down_to_the_minimum(waiting, ratio, reason):
    assert keep(RequestOptions(), _config(keep_min=0.1), waiting) == (
        pytest.approx(ratio, abs=0.0 if waiting >= 16 else 1e-9),
        reason,
    )


def test_without_a_minimum_it_does_not_fall():
    assert keep(RequestOptions(), _config(), 999) == (0.2, "server")


def test_a_request_has_the_last_word():
    config = _config(keep_min=0.1, backlog=4)
    assert keep(RequestOptions(keep_ratio=0.5), config, 4) == (0.5, "request")
    assert keep(RequestOptions(keep_ratio=0.5), config, 8) == (0.5, "request")
    assert keep(RequestOptions(keep_ratio=0.5, keep_min=0.1), config, 8) == (0.25, "backlog")
    assert keep(RequestOptions(keep_ratio=1), config, 999) == (1, "request")
    assert keep(RequestOptions(keep_min=0.2), config, 99) == (0.2, "server")
    assert keep(RequestOptions(keep_min=0.15), _config(), 99) == (0.15, "backlog")
