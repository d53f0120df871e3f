"""Events of the radix cache: subscribers, who route prompts to where their blocks are, hear only of blocks plain prompts share.

A block with coded ids, or behind one, can be hit by no prompt as it arrives, and its ids are no tokens.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import msgspec

from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.request.skipcode import TOKEN_MASK


def announce_plain_blocks(_result: Any, scheduler: Any, *_args: Any) -> None:
    """AFTER Scheduler.init_kv_events_publisher: what is published goes through a filter."""
    publisher = scheduler.kv_events_publisher.kv_event_publisher
    if config_of(scheduler.server_args) is None or publisher is None:
        return
    plain, publish = PlainBlocks(), publisher.publish

    def publish_plain(batch: Any) -> None:
        if events := plain.of(batch.events):
            publish(msgspec.structs.replace(batch, events=events))

    publisher.publish = publish_plain


class PlainBlocks:
    """What is left of a stream of SGLang's events; remembers which blocks were kept back, while they lie anywhere.

    A block may lie on several media, and in several namespaces, which SGLang's hashes do not tell apart.
    """

    def __init__(self) -> None:
        self._hidden: Counter[int] = Counter()

    def of(self, events: Iterable[Any]) -> list[Any]:
        """The events that are to be published, in order."""
        from sglang.srt.disaggregation.kv_events import BlockRemoved, BlockStored

        kept = []
        for event in events:
            if isinstance(event, BlockStored):
                event = self._stored(event)
            elif isinstance(event, BlockRemoved):
                event = self._removed(event)
            else:  # all blocks are gone
                self._hidden.clear()
            if event is not None:
                kept.append(event)
        return kept

    def _stored(self, event: Any) -> Any:
        """The blocks of a chain before the first that is coded, None if there are none."""
        plain = 0 if event.parent_block_hash in self._hidden else _plain_tokens(event.token_ids) // event.block_size
        self._hidden.update(event.block_hashes[plain:])
        if not plain:
            return None
        tokens = event.token_ids[: plain * event.block_size]
        return msgspec.structs.replace(event, block_hashes=event.block_hashes[:plain], token_ids=tokens)

    def _removed(self, event: Any) -> Any:
        """The blocks that were announced, None if there are none."""
        blocks = [block for block in event.block_hashes if not self._took_away(block)]
        return msgspec.structs.replace(event, block_hashes=blocks) if blocks else None

    def _took_away(self, block: int) -> bool:
        """Whether a block was kept back; then it lies in one place less."""
        if block not in self._hidden:
            return False
        self._hidden[block] -= 1
        if not self._hidden[block]:
            del self._hidden[block]
        return True


def _plain_tokens(tokens: list) -> int:
    """How many come before the first coded one; an EAGLE head's cache has pairs of them."""
    largest = (max(one) if isinstance(one, tuple) else one for one in tokens)
    return next((at for at, one in enumerate(largest) if one > TOKEN_MASK), len(tokens))
