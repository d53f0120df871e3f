"""One path is enough where SGLang decodes with a whole model as speculative draft; given two, each keeps its own."""

from argparse import Namespace
from types import SimpleNamespace

import pytest

from specprefill_sgl.hooks.launch import attach_flags, config_of


@pytest.fixture
def drafts(pair_of):
    """Two folders with models."""
    return tuple(map(str, pair_of("llama")))


def _paths(algorithm: str, *, ours: str | None = None, theirs: str | None = None) -> tuple[str | None, str | None]:
    """Both drafts of a command line, ours first."""
    server_args = SimpleNamespace(
        speculative_algorithm=algorithm, speculative_draft_model_path=theirs, disaggregation_mode="null"
    )
    attach_flags(server_args, type(server_args), Namespace(spec_prefill=True, spec_prefill_draft_model_path=ours))
    return config_of(server_args).draft_model_path, server_args.speculative_draft_model_path


def test_either_path_is_for_both(drafts):
    draft = drafts[1]
    assert _paths("standalone", ours=draft) == _paths("STANDALONE", theirs=draft) == (draft, draft)


def test_two_paths_stay_two(drafts):
    assert _paths("STANDALONE", ours=drafts[1], theirs=drafts[0]) == (drafts[1], drafts[0])


def test_other_algorithms_take_none_of_ours(drafts):
    assert _paths("NGRAM", ours=drafts[1]) == (drafts[1], None)


def test_a_head_is_no_draft_of_ours(drafts):
    with pytest.raises(SystemExit, match="--spec-prefill-draft-model-path"):
        _paths("EAGLE", theirs=drafts[1])
