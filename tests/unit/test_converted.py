"""Conversations that are rendered by OpenAI's harmony library, which does not say where a message is."""

from types import SimpleNamespace

import pytest

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.hooks import converted


@pytest.mark.parametrize(
    ("fields", "roles", "wanted"),
    [
        ({}, (), {}),
        ({"spec_prefill_protect_roles": ["user"]}, (), {"spec_prefill_protect": [0, 7]}),
        ({"spec_prefill_keep_ratio": 0.1}, ("system",), {"spec_prefill_keep_ratio": 0.1, "spec_prefill_protect": [0, 7]}),
        ({"spec_prefill_protect_roles": []}, ("system",), {}),
    ],
)
def test_with_protected_roles_everything_is_kept(fields, roles, wanted):
    args = SimpleNamespace(_spec_prefill=SpecPrefillConfig(protect_roles=roles))
    serving = SimpleNamespace(tokenizer_manager=SimpleNamespace(server_args=args))
    converted._fields.set(fields)
    converted.protect_harmony(([], [[5] * 7], [[5] * 7]), serving)
    params = {}
    converted.hand_through(params)
    assert params.get("custom_params", {}) == wanted
