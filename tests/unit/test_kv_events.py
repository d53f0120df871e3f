"""Which events of the radix cache are published."""

import pytest
from sglang.srt.disaggregation.kv_events import AllBlocksCleared, BlockRemoved, BlockStored

from specprefill_sgl.hooks.kv_events import PlainBlocks

CODED = (3 << 32) | 7  # a token after a skip


def stored(blocks, tokens, parent=None, size=1, medium="GPU"):
    return BlockStored(
        block_hashes=blocks, parent_block_hash=parent, token_ids=tokens, block_size=size, lora_id=None, medium=medium
    )


def removed(blocks, medium="GPU"):
    return BlockRemoved(block_hashes=blocks, medium=medium)


def test_plain_chains_pass_as_they_are():
    events = [stored([1, 2], [5, 6]), stored([3], [7], parent=2), removed([3]), removed([1, 2])]
    assert PlainBlocks().of(events) == events


def test_a_chain_is_announced_up_to_its_first_coded_block():
    plain = PlainBlocks()
    assert plain.of([stored([1, 2, 3, 4], [5, 6, CODED, 8])]) == [stored([1, 2], [5, 6])]
    assert plain.of([stored([5], [9], parent=4)]) == []  # the answer of the sparse prompt
    assert plain.of([stored([6], [9], parent=2)]) == [stored([6], [9], parent=2)]


def test_a_block_with_one_coded_token_is_not_announced():
    events = [stored([1, 2], [5, 6, 7, CODED], size=2)]
    assert PlainBlocks().of(events) == [stored([1], [5, 6], size=2)]


@pytest.mark.parametrize("pair", [(6, CODED), (CODED, 6)])
def test_pairs(pair):
    events = [stored([1, 2], [(5, 6), pair])]
    assert PlainBlocks().of(events) == [stored([1], [(5, 6)])]


def test_only_what_was_announced_is_removed():
    plain = PlainBlocks()
    plain.of([stored([1, 2, 3], [5, CODED, 7])])
    assert plain.of([removed([3, 2, 1])]) == [removed([1])]
    assert plain.of([removed([9])]) == [removed([9])]


@pytest.mark.parametrize("medium", ["GPU", "CPU_PINNED"])
def test_a_block_is_known_while_it_lies_anywhere(medium):
    """On another medium, or in another namespace."""
    plain = PlainBlocks()
    plain.of([stored([1], [CODED]), stored([1], [CODED], medium=medium)])
    assert plain.of([removed([1])]) == []
    assert plain.of([stored([2], [6], parent=1, medium=medium)]) == []
    assert plain.of([removed([2, 1], medium)]) == []
    assert plain._hidden == {}


def test_cleared():
    plain = PlainBlocks()
    plain.of([stored([1], [CODED])])
    assert plain.of([AllBlocksCleared()]) == [AllBlocksCleared()]
    assert plain._hidden == {}
