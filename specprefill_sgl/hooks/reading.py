"""Prompts for methods that have a tokenizer of their own: read in the front end, beside SGLang's own tokenization.

So it costs the scheduler nothing and every tensor-parallel rank gets the same. It runs in a thread, so that other requests
are not held up either.
"""

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from specprefill_sgl.config import SpecPrefillConfig
from specprefill_sgl.hooks.launch import config_of
from specprefill_sgl.methods import registry
from specprefill_sgl.request import reading
from specprefill_sgl.request.options import given, parse

logger = logging.getLogger(__name__)

_READERS = "_spec_prefill_readers"  # on the tokenizer manager, by method
_thread = ThreadPoolExecutor(1, thread_name_prefix="spec_prefill_tokens")


async def read_one(original: Any, manager: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND TokenizerManager._tokenize_one_request."""
    tokenized = await original(manager, obj, *args, **kwargs)
    await _attach(manager, [tokenized])
    return tokenized


async def read_batch(original: Any, manager: Any, batch_size: int, obj: Any, *args: Any, **kwargs: Any) -> Any:
    """AROUND TokenizerManager._batch_tokenize_and_process, which may call the above for each."""
    tokenized = await original(manager, batch_size, obj, *args, **kwargs)
    await _attach(manager, tokenized)
    return tokenized


async def _attach(manager: Any, requests: Sequence[Any]) -> None:
    """Put readings where the scheduler finds them, of the requests that can use one."""
    config = config_of(manager.server_args)
    if config is None:
        return
    if not hasattr(manager, _READERS):
        setattr(manager, _READERS, registry.token_readers(config, manager.server_args))
    if not (readers := getattr(manager, _READERS)):
        return
    for request in requests:
        params = request.sampling_params
        custom = params.custom_params if isinstance(params.custom_params, dict) else {}
        if reading.KEY not in custom and (method := _wants(request, custom, config)) in readers:
            found = await asyncio.get_running_loop().run_in_executor(_thread, _read, readers[method], request.input_ids)
            if found is not None:
                params.custom_params = {**custom, reading.KEY: reading.pack(found)}


def _wants(request: Any, custom: dict, config: SpecPrefillConfig) -> str | None:
    """The method that is to read a request; None where it will surely be dense."""
    if any(getattr(request, name, None) is not None for name in ("mm_inputs", "custom_logit_processor")):
        return None
    if request.input_ids is None:
        return None
    options = parse(custom)
    if options.enabled is False or len(request.input_ids) < given(options.min_tokens, config.min_tokens):
        return None
    return options.method_of(config)


def _read(reader: Any, ids: Sequence[int]) -> reading.Reading | None:
    """None where it cannot: the request is then prefilled dense and its reply says so."""
    try:
        return reader.read(ids)
    except Exception:
        logger.exception("Speculative prefill: no text was found of a prompt of %d tokens; it is prefilled dense.", len(ids))
        return None
