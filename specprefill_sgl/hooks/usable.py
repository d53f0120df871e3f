"""What a request may ask of a server at all; the front end refuses it, and the scheduler where a front end knows no fields."""

from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import PREFIX, SpecPrefillConfig, needs_radix_cache
from specprefill_sgl.methods import registry
from specprefill_sgl.request.options import RequestError, RequestOptions


def check_usable(options: RequestOptions, config: SpecPrefillConfig, server_args: Any) -> None:
    """Refuse fields that can have no effect on a server.

    Raises
    ------
    RequestError
        Names the field and the method or the server's option that is why.
    """
    method = options.method_of(config)
    for name in needs_radix_cache(options):
        if name not in registry.METHODS[method].reads:
            raise RequestError(f"{PREFIX}_{name} cannot be used with the method {method}: it has no effect.")
    if options.revive_every and config.draft_tokenizer == "own" and method == "draft":
        raise RequestError("spec_prefill_revive_every cannot be used: answers are not in the draft's own tokens.")
    if options.revive_every and method in config.forgetful:
        raise RequestError("spec_prefill_revive_every cannot be used: with the server's page size the reader forgets prompts.")
    for name, option, _ in compat.cannot_use(options, server_args):
        raise RequestError(f"{PREFIX}_{name} cannot be used: the server was started with {option}.")
