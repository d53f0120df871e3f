"""Every server option that cannot be combined with --spec-prefill is refused by name, on SGLang's real ServerArgs."""

import re

import pytest

from specprefill_sgl import compat
from specprefill_sgl.config import ConfigError


class Overlaid:
    """A ServerArgs with some values replaced: the options cannot all be resolved on a machine without their hardware."""

    def __init__(self, base, **values):
        self._base, self._values = base, values

    def __getattr__(self, name):
        return self._values[name] if name in self._values else getattr(self._base, name)


@pytest.fixture(scope="module")
def server_args():
    from sglang.srt.server_args import ServerArgs

    return ServerArgs(model_path="m", device="cpu")


@pytest.fixture
def check(monkeypatch, server_args):
    import sglang.srt.arg_groups.overrides as overrides

    monkeypatch.setattr(overrides, "resolving_view", lambda args: args)
    return lambda **values: compat.check_server_options(Overlaid(server_args, **values))


def test_defaults_are_accepted(check):
    check()


ON = {
    "speculative_algorithm": "EAGLE",
    "disaggregation_mode": "prefill",
    "pp_size": 2,
    "dcp_size": 2,
    "attn_cp_size": 2,
    "dllm_algorithm": "x",
    "hicache_storage_backend": "file",
    "kv_events_config": "{}",
    "radix_cache_backend": "x",
    "kv_canary": "raise",
    "elastic_ep_backend": "mooncake",
    "tokenizer_worker_num": 2,
}


@pytest.mark.parametrize("flag", [flag for flag, _, _ in compat._REJECTED_OPTIONS])
def test_each_option_is_refused_by_name(check, flag):
    field = flag.removeprefix("--").replace("-", "_")
    with pytest.raises(ConfigError, match=re.escape(f"--spec-prefill cannot be combined with {flag}:")):
        check(**{field: ON.get(field, True)})


@pytest.mark.parametrize("backend", sorted(compat._UNSUPPORTED_BACKENDS))
def test_attention_backends(check, backend):
    with pytest.raises(ConfigError, match="--prefill-attention-backend"):
        check(prefill_attention_backend=backend)


@pytest.mark.parametrize("name", sorted(compat._REJECTED_ENVIRONMENT))
def test_environment(check, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(ConfigError, match=name):
        check()


def test_untested_release_is_refused(monkeypatch):
    monkeypatch.setattr(compat, "version", lambda name: "0.5.99")
    with pytest.raises(ConfigError, match=r"0\.5\.99"):
        compat.check_version()
