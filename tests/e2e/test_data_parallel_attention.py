"""Sparse requests under data-parallel attention: each group of ranks drafts for its own requests, others meanwhile idle or not.

The target is a Qwen: SGLang's Llama sums embeddings over all ranks, so that ranks with other prompts spoil them.
"""

import pytest
import requests

from benchmarks.launch import LaunchError
from tests.support.faults import plugin_on_path
from tests.support.mixture import DENSE, assert_same_mixture
from tests.support.server import CONTROL, Server, serve, sparse_options
from tests.support.tiny_models import prompt_ids

pytestmark = pytest.mark.slow

SPARSE = {"spec_prefill_keep_ratio": 0.3}
TWO = ("--tp", "2", "--attn-dp-size", "2")


class _Sticky(Server):
    """A conversation stays with one group: the other knows nothing of its earlier turns. The first token tells it."""

    def generate(self, ids, **fields):
        return super().generate(ids, routed_dp_rank=ids[0] % 2, **fields)


def _pools(server) -> list[dict]:
    """Of every group."""
    states = requests.get(server.url + "/server_info", timeout=60).json()["internal_states"]
    return [{name: value for name, value in one["spec_prefill"].items() if name.startswith("draft_")} for one in states]


@pytest.mark.parametrize("options", [TWO, (*TWO, "--chunked-prefill-size", "128"), (*TWO, "--disable-overlap-schedule")])
def test_mixture(options, pair_of, mixture_of, tmp_path):
    target, draft = pair_of("qwen3")
    with serve(tmp_path, target, *sparse_options(draft), *options) as server:
        before = _pools(server)
        assert len(before) == 2
        assert_same_mixture(_Sticky(server.url, server.log), mixture_of("qwen3"))
        assert _pools(server) == before


def test_a_group_of_two_ranks_divides_the_drafts_heads(pair_of, mixture_of, tmp_path):
    target, draft = pair_of("qwen3")
    with serve(tmp_path, target, *sparse_options(draft), "--tp", "4", "--attn-dp-size", "2") as server:
        assert_same_mixture(_Sticky(server.url, server.log), mixture_of("qwen3"))


def test_one_group_drafts_while_the_other_idles(pair_of, tmp_path):
    """Prompts one after another, each group in its turn; stock SGLang says the same to those that are dense."""
    target, draft = pair_of("qwen3")
    prompts = [prompt_ids(700, seed=at) for at in range(4)]
    with serve(tmp_path, target, *TWO, env=CONTROL) as server:
        stock = [server.generate(ids)["output_ids"] for ids in prompts]
    with serve(tmp_path, target, *sparse_options(draft), *TWO) as server:
        assert [server.generate(ids, custom=DENSE)["output_ids"] for ids in prompts] == stock
        server.flush()
        said = [[server.generate(ids, custom=SPARSE, routed_dp_rank=group) for ids in prompts] for group in range(2)]
    assert [reply["output_ids"] for reply in said[0]] == [reply["output_ids"] for reply in said[1]]
    assert all(reply["meta_info"]["spec_prefill"]["applied"] for replies in said for reply in replies)


_UNDOING = """
def register():
    import contextlib
    from specprefill_sgl.models import runner

    runner._own_ranks = contextlib.nullcontext
"""


def test_a_draft_over_all_ranks_does_not_come_up(pair_of, tmp_path):
    target, draft = pair_of("qwen3")
    env = plugin_on_path(tmp_path / "plugin", "undoing", _UNDOING)
    with pytest.raises(LaunchError), serve(tmp_path, target, *sparse_options(draft), *TWO, env=env):
        pass
