"""What a request may ask of a server at all; the front end refuses it, and the scheduler where a front end knows no fields."""

from typing import Any

from specprefill_sgl import compat
from specprefill_sgl.config import PREFIX, SpecPrefillConfig
from specprefill_sgl.request.options import RequestError, RequestOptions


def check_usable(options: RequestOptions, config: SpecPrefillConfig, server_args: Any) -> None:
    """Refuse fields that can have no effect on a server.

    Raises
    ------
    RequestError
        Names the field and the server's option that is why.
    """
    if options.revive_every and config.draft_tokenizer == "own" and options.method_of(config) == "draft":
        raise RequestError("spec_prefill_revive_every cannot be used: answers are not in the draft's own tokens.")
    if options.revive_every and options.method_of(config) in config.forgetful:
        raise RequestError("spec_prefill_revive_every cannot be used: with the server's page size the reader forgets prompts.")
    if options.backfill not in (None, "off") and options.method_of(config) == "lazy":
        raise RequestError("spec_prefill_backfill cannot be used with the method lazy: its layers lack different tokens.")
    for name, option, _ in compat.cannot_use(options, server_args):
        raise RequestError(f"{PREFIX}_{name} cannot be used: the server was started with {option}.")
