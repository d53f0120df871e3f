"""Writes the tables of these pages that say what the code says: `python -m docs.generate`; `--check` only compares.

A table stands between `<!-- NAME -->` and `<!-- end -->`. What the code's own tables do not explain is explained here; where
the code has something that is explained nowhere, this fails and names it.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np

from specprefill_sgl.compat import works_with
from specprefill_sgl.config import PREFIX, SpecPrefillConfig, flag
from specprefill_sgl.hooks import launch
from specprefill_sgl.observability.metrics import Metrics
from specprefill_sgl.observability.reply import reply_object
from specprefill_sgl.request import eligibility, options
from specprefill_sgl.request.backlog import Keep
from specprefill_sgl.request.prompts import Outcome, Votes
from specprefill_sgl.request.state import PromptState
from specprefill_sgl.selection.rule import CHANGEABLE, Rule, preset

_PAGES = Path(__file__).parent
_GROUPS = {
    "flags-reader": (
        *("spec_prefill", "config", "method", "draft_model_path", "draft_tokenizer", "draft_max_tokens", "layers", "heads"),
    ),
    "flags-kept": ("keep_ratio", "keep_min", "backlog", "min_tokens", "keep_first", "keep_last", "protect_roles"),
    "flags-rule": ("selection", *CHANGEABLE),
    "flags-return": (
        *("revive_every", "revive_chunks", "revive_max"),
        *("backfill", "backfill_tokens", "backfill_decodes"),
    ),
}  # fmt: skip
_FIELDS = {
    "spec_prefill": "`false`: dense.",
    "spec_prefill_method": "One of the server's methods, instead of the first.",
    "spec_prefill_keep_min": "What the keep ratio may fall to under a backlog.",
    "spec_prefill_selection": "The rule, with the preset's own settings.",
    "spec_prefill_protect": "Flat list of token offsets `[start, end, ...]`, end excluded. Their chunks are always kept.",
    "spec_prefill_protect_roles": "Where there are messages: those of these roles are kept whole. Beats the server's default.",
    "spec_prefill_return_positions": "The reply lists the kept positions.",
    "spec_prefill_return_scores": "The reply lists the score of every chunk.",
    "spec_prefill_return_votes": "The reply lists each query's votes for every chunk. The prompt is then drafted "
    "even if it was asked before.",
}
_TYPES = {bool: "true or false", int: "integer", float: "number in (0, 1]", str: "text"}
_REPLY = {
    "applied": "Whether the prompt was handled by Speculative Prefill.",
    "reason": "Why not, else null.",
    "method": "Who chose; null if nothing was chosen.",
    "prompt_tokens": "The prompt's original length.",
    "kept_tokens": "Tokens that were prefilled.",
    "predicted_tokens": "Tokens whose KV was predicted (`kv-prediction`, experimental).",
    "kept_by_layer": "Of `lazy`: from which layer on how many prompt tokens are there; else null.",
    "keep_ratio": "`kept_tokens / prompt_tokens`: what was really kept.",
    "keep_ratio_used": "The ratio it was selected with.",
    "keep_ratio_reason": "Whose ratio that is: `server`, `request` or `backlog`.",
    "draft_tokens": "Tokens the prompt has for its reader.",
    "draft_cached_tokens": "Of these, how many it did not have to read: found in its prefix cache, or asked before.",
    "backfilled": "Output tokens after which the request went on as a dense one; else null.",
    "revived_tokens": "Dropped tokens that returned.",
    "revived_after": "Output tokens after which something returned. In a stream's last chunk only.",
    "asked_after": "Output tokens after which the answer was asked what it lacks. In a stream's last chunk only.",
    "tokenize_ms": "Making a draft's own tokens of the prompt; 0 where it reads the target's.",
    "draft_ms": "Wall time of the draft's forwards, of the group the prompt was drafted in.",
    "score_ms": "Scoring and selection, of the same group.",
    "positions": "On request: kept original positions, in the order they were prefilled.",
    "scores": "On request: mean importance of each chunk. Where window and lookahead choose in turn: 1 / (1 + best place).",
    "chunk_size": "With `scores`: tokens per chunk.",
    "votes": "On request: `tokens` and `positions` of the queries, `chunks` with a row per query. From `prompt_tokens` on "
    "they were decoded; token -1 is one of a draft's own.",
}
_REASONS = {
    eligibility.OPTED_OUT: "The request said `spec_prefill: false`.",
    eligibility.TOO_SHORT: "The prompt is shorter than `min_tokens`.",
    eligibility.MULTIMODAL: "It has images, audio or video.",
    eligibility.INPUT_EMBEDS: "It has embeddings in place of tokens.",
    eligibility.PROMPT_LOGPROBS: "It wants log-probabilities of the prompt.",
    eligibility.HIDDEN_STATES: "It wants hidden states.",
    eligibility.SESSION: "It belongs to an SGLang session.",
    eligibility.BEAM_SEARCH: "It is a beam search.",
    eligibility.LOGIT_PROCESSOR: "It has a custom logit processor.",
    eligibility.SCORING: "It is an embedding or a score, which need the whole prompt.",
    eligibility.EXPERT_TRACE: "It wants a trace for each token (routed experts, index).",
    eligibility.ABORTED: "It was aborted first.",
    eligibility.PREFIX_CACHED: "What the radix cache lacks of it is shorter than `min_tokens`.",
    eligibility.DRAFT_CONTEXT: "It is longer than the draft's context.",
    eligibility.DRAFT_POOL: "It is longer than the draft's KV pool.",
    eligibility.DRAFT_VOCABULARY: "A token id is beyond the draft's vocabulary.",
    eligibility.DRAFT_TEXT: "A draft with its own tokenizer needs text, and there is none.",
    eligibility.PREDICTION_EVICTED: "The predicted KV was evicted before the request was admitted.",
    eligibility.PREDICTOR_OUTDATED: "The target's weights were updated; its predictor knows the older ones.",
    eligibility.AUX_CACHE: "What `lazy` would park of it is more than `--spec-prefill-aux-cache-bytes`.",
    eligibility.DRAFT_ERROR: "The draft failed; the server's log has the traceback.",
}


def tables() -> dict[str, str]:
    """Every table by its name."""
    given = _flags()
    grouped = [name for group in _GROUPS.values() for name in group]
    groups = _GROUPS | {"flags-other": tuple(name for name in given if name not in grouped)}
    flags = {
        name: _table(("flag", "meaning"), ((f"`{flag_of(one)}`", given[one]) for one in ones)) for name, ones in groups.items()
    }
    return flags | {
        "rules": _table(("`--spec-prefill-...`", "`best`", "`best` with heads", "`paper`"), _rules()),
        "fields": _table(("field", "type", "meaning"), _fields(given)),
        "reply": _table(
            ("field", "meaning"), ((f"`{name}`", text) for name, text in _described(_REPLY, _reply(), "a reply field"))
        ),
        "reasons": _table(
            ("reason", "meaning"),
            ((f"`{name}`", text) for name, text in _described(_REASONS, eligibility.REASONS, "a reason")),
        ),
        "metrics": _table(("metric", "kind", "labels", "meaning"), _metrics()),
        "options": works_with.markdown(),
    }


def flag_of(name: str) -> str:
    """The command line's spelling; the switch has no name of its own."""
    return "--spec-prefill" if name == PREFIX else flag(name)


def _flags() -> dict[str, str]:
    """Name -> help, as `--help` prints it."""
    parser = argparse.ArgumentParser(add_help=False)
    launch.add_flags(None, parser)
    return {action.dest.removeprefix(f"{PREFIX}_"): action.help or "" for action in parser._actions}


def _rules() -> Iterator[tuple[str, ...]]:
    rules = preset("best", None), preset("best", ()), preset("paper", None)
    for name in (*CHANGEABLE, "keep_last"):
        yield f"`{name.replace('_', '-')}`", *(str(getattr(rule, name)).lower() for rule in rules)


def _fields(flags: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    types = {**get_type_hints(Rule), **get_type_hints(SpecPrefillConfig), **get_type_hints(options.RequestOptions)}
    for key, text in _described(
        {**{f"{PREFIX}_{name}": text for name, text in flags.items()}, **_FIELDS}, options.fields(), "a field"
    ):
        name = {PREFIX: "enabled"}.get(key, key.removeprefix(f"{PREFIX}_"))
        yield f"`{key}`", _type(types[name]), text


def _type(hint: Any) -> str:
    """In words: of a choice, the values."""
    if get_origin(hint) is tuple:
        return "list"
    parts = [part for part in get_args(hint) if part is not type(None)] or [hint]
    if len(parts) == 1 and get_args(parts[0]) and not isinstance(parts[0], str):
        return _type(parts[0])
    if all(isinstance(part, str) for part in parts):
        return " or ".join(f"`{part}`" for part in parts)
    return _TYPES[parts[0]]


def _reply() -> Iterable[str]:
    """The fields of a reply that has all of them."""
    everything = options.RequestOptions(return_positions=True, return_scores=True, return_votes=True)
    state = PromptState(everything, 4, Rule(), Keep(0.5, "server"), "draft")
    votes = Votes(tokens=[1], positions=[3], chunks=np.zeros((1, 1)))
    state.decide(Outcome(positions=np.array([0, 3]), scores=np.zeros(1), votes=votes))
    return reply_object(state, final=True)


def _metrics() -> Iterator[tuple[str, ...]]:
    """Of what Prometheus is told, once everything has happened."""
    import prometheus_client
    from prometheus_client.parser import text_string_to_metric_families

    metrics = Metrics({"model_name": "m"})
    outcome = Outcome(positions=np.array([0]), tokenize_ms=1.0)
    metrics.decided(outcome, 2, "draft")
    metrics.drafted([outcome], "draft")
    metrics.reconsidered("revived", 1)
    metrics.backfilled("complete")
    for family in text_string_to_metric_families(prometheus_client.generate_latest().decode()):
        if not family.name.startswith("sglang:") or family.name.endswith("_created"):
            continue
        labels = {name for sample in family.samples for name in sample.labels} - {"model_name", "le"}
        name = family.name + ("_total" if family.type == "counter" else "")
        yield f"`{name}`", family.type, ", ".join(f"`{one}`" for one in sorted(labels)), family.documentation


def _described(texts: dict[str, str], names: Iterable[str], what: str) -> Iterator[tuple[str, str]]:
    for name in names:
        if name not in texts:
            sys.exit(f"docs.generate: {name} is {what} that is explained nowhere.")
        yield name, texts[name]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    if len(lines) == 2:
        return "None."
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def filled(page: str, found: dict[str, str]) -> str:
    """A page with its tables as the code has them."""

    def put(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{found[match[1]]}\n<!-- end -->"

    return re.sub(r"<!-- ([\w-]+) -->\n.*?<!-- end -->", put, page, flags=re.DOTALL)


def main() -> None:
    """Exit status 1 if a page lags behind the code and is only to be checked."""
    parser = argparse.ArgumentParser(prog="python -m docs.generate", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; say which pages lag")
    check = parser.parse_args().check
    found = tables()
    lag = []
    for path in sorted(_PAGES.glob("*.md")):
        page = path.read_text(encoding="utf-8")
        if (now := filled(page, found)) != page:
            lag.append(path.name)
            if not check:
                path.write_text(now, encoding="utf-8")
    if check and lag:
        sys.exit(f"{', '.join(lag)} lag behind the code: python -m docs.generate")


if __name__ == "__main__":
    main()
