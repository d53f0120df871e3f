"""The names of SGLang's options, and which of them cannot be combined with Speculative Prefill.

Option names and attributes are those of SGLang 0.5.23.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Any

from specprefill_sgl.compat import releases
from specprefill_sgl.config import ConfigError, needs_queue, needs_radix_cache

logger = logging.getLogger(__name__)

APP_OF_WORKERS = "specprefill_sgl.hooks.http_worker:app"  # what processes of --tokenizer-worker-num import
SHORTEST_QUEUE = 2  # for running requests to go back to: SGLang refuses whoever arrives when it is full

# Attention backends that read token positions as KV indices, or select KV themselves; names after resolution, by which
# SGLang calls `compressed` `dsv4`.
_UNSUPPORTED_BACKENDS = {
    "dsv4", "llada2_cfg_flashinfer", "minicpm_flashattn", "minicpm_flashinfer", "qsa",
}  # fmt: skip

SPECULATION = ("NGRAM", "STANDALONE", "EAGLE", "EAGLE3")  # EAGLE is what SGLang resolves MTP (NEXTN) into
_UNMEASURED_SPECULATION = dict.fromkeys(
    ("DFLASH", "DSPARK", "UNO", "FROZEN_KV_MTP"),
    "its drafts take positions from lengths, and how many of them a sparse request accepts was not measured",
)

SPECULATIVE_DRAFT_FLAG = "--speculative-draft-model-path"

# Attention backends of speculative drafts that take positions for lengths (`generate_draft_decode_kv_indices`).
INDEXED_BY_POSITIONS = (
    "sglang.srt.layers.attention.triton_backend.TritonMultiStepDraftBackend",
    "sglang.srt.layers.attention.flashinfer_backend.FlashInferMultiStepDraftBackend",
    "sglang.srt.layers.attention.flashinfer_mla_backend.FlashInferMLAMultiStepDraftBackend",
    "sglang.srt.layers.attention.aiter_backend.AiterMultiStepDraftBackend",
)

# (flag as the user typed it, whether it is on once SGLang has resolved all flags, why it cannot be combined)
_REJECTED_OPTIONS: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    *(
        (f"--speculative-algorithm {name}", lambda a, name=name: a.speculative_algorithm == name, why)
        for name, why in _UNMEASURED_SPECULATION.items()
    ),
    (
        "--speculative-algorithm",  # of another plugin
        lambda a: a.speculative_algorithm not in (None, *SPECULATION, *_UNMEASURED_SPECULATION),
        f"known are {', '.join(SPECULATION)}",
    ),
    (
        # SGLang resolves the older flag into the newer
        "--attn-dp-size (--enable-dp-attention) with --pp-size or --speculative-algorithm",
        lambda a: a.attn_dp_size > 1 and (a.pp_size > 1 or a.speculative_algorithm is not None),
        "they were never run together",
    ),
    (
        "--pp-size with --speculative-algorithm",
        lambda a: a.pp_size > 1 and a.speculative_algorithm is not None,
        "what later stages verify was not run",
    ),
    (
        "--hicache-host-memory-mode buffer_only with --pp-size",
        lambda a: a.pp_size > 1 and a.hicache_host_memory_mode == "buffer_only",
        "the first stage says at arrival what is fetched from storage, before tokens are dropped",
    ),
    ("--dcp-size", lambda a: a.dcp_size > 1, "it reads positions as KV indices"),
    ("--attn-cp-size", lambda a: a.attn_cp_size > 1, "it reads positions as KV indices"),
    ("--enable-mis", lambda a: a.enable_mis, "it rewrites positions"),
    ("--dllm-algorithm", lambda a: a.dllm_algorithm is not None, "diffusion models do not prefill causally"),
    ("--enable-hisparse", lambda a: a.enable_hisparse, "it reads positions as KV indices"),
    ("--enable-unified-cache-external-linker", lambda a: a.enable_unified_cache_external_linker, "it sees token ids"),
    ("--enable-lmcache", lambda a: a.enable_lmcache, "it hashes token ids"),
    ("--enable-flexkv", lambda a: a.enable_flexkv, "it hashes token ids"),
    ("--radix-cache-backend", lambda a: a.radix_cache_backend is not None, "it may truncate coded token ids"),
    ("--kv-canary", lambda a: a.kv_canary not in (None, "none", "off"), "it checks KV against plain token ids"),
    ("--enable-pdmux", lambda a: a.enable_pdmux, "it runs prefill and decode on other streams"),
    ("--elastic-ep-backend", lambda a: a.elastic_ep_backend is not None, "ranks may leave while a draft runs"),
    (
        "--enable-memory-saver alone",
        lambda a: a.enable_memory_saver and not (a.enable_weights_cpu_backup or a.enable_draft_weights_cpu_backup),
        "without --enable-draft-weights-cpu-backup or --enable-weights-cpu-backup a released draft would not be restored",
    ),
    ("--encoder-only", lambda a: a.encoder_only, "there is nothing to prefill"),
    ("--is-embedding", lambda a: bool(a.is_embedding), "embeddings need every token"),
    ("--enable-watermark", lambda a: a.enable_watermark, "it hashes token ids"),
)  # fmt: skip

# the same beside --disaggregation-mode
_REJECTED_BESIDE_DISAGGREGATION: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--speculative-algorithm", lambda a: a.speculative_algorithm is not None, "what its drafts read was not tried"),
    ("--pp-size", lambda a: a.pp_size > 1, "stages hand over their own layers, which was not tried"),
    ("--attn-dp-size (--enable-dp-attention)", lambda a: a.attn_dp_size > 1, "it was not tried"),
    ("--enable-hierarchical-cache", lambda a: a.enable_hierarchical_cache, "it was not tried"),
    (
        "--disaggregation-decode-enable-radix-cache",
        lambda a: a.disaggregation_decode_enable_radix_cache,
        "the decode side does not know which tokens it got",
    ),
    (
        "--disaggregation-decode-enable-offload-kvcache",
        lambda a: a.disaggregation_decode_enable_offload_kvcache,
        "the decode side does not know which tokens it got",
    ),
    (
        "--disaggregation-decode-host-receive-threshold",
        lambda a: a.disaggregation_decode_host_receive_threshold < 1,
        "host memory is taken and given back by the prompt's length",
    ),
    ("--enable-pd-role-switch", lambda a: a.enable_pd_role_switch, "the decode side has nobody who reads prompts"),
    (
        "--kv-cache-dtype mxfp8",
        lambda a: a.kv_cache_dtype == "mxfp8",
        "the scales of its blocks are handed over by the prompt's length",
    ),
    (
        "SGLANG_DISAGG_STAGING_BUFFER",
        lambda _: _has_staging_buffer(),
        "the decode side prepares for the prompt's length",
    ),
)

# the same beside --spec-prefill-method kv-prediction
_REJECTED_BESIDE_PREDICTION: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("--disable-radix-cache", lambda a: a.disable_radix_cache, "predicted KV is handed over in the radix cache"),
    (
        "--speculative-algorithm",
        lambda a: a.speculative_algorithm is not None,
        "the KV of what drafts the answer is not predicted",
    ),
    ("--enable-lora", lambda a: a.enable_lora, "an adapter has other keys and values than the predictor was trained for"),
    ("--pp-size", lambda a: a.pp_size > 1, "the stages after the first one hold layers that it would have to write"),
    ("--attn-dp-size", lambda a: a.attn_dp_size > 1, "it was not tried"),
    ("--disaggregation-mode", lambda a: a.disaggregation_mode != "null", "the decode side does not know of it"),
    ("--enable-hierarchical-cache", lambda a: a.enable_hierarchical_cache, "it was not tried"),
    ("--enable-unified-memory", lambda a: a.enable_unified_memory, "slots of its pool move"),
    (
        "--kv-cache-dtype",
        lambda a: a.kv_cache_dtype not in ("auto", "bfloat16", "bf16"),
        "what a quantized pool makes of predicted keys was not measured",
    ),
)

_REJECTED_ENVIRONMENT = {
    "SGLANG_RUST_SERVER": "the Rust front end loads no plugins",
    "SGLANG_USE_HND_KVCACHE": "it stores keys page by page, which scoring does not read",
}


def is_tested() -> bool:
    """Whether the installed release of SGLang is one whose internals were tested."""
    return version("sglang") in releases.TESTED


def check_version() -> None:
    """Refuse any other."""
    if not is_tested():
        raise ConfigError(f"--spec-prefill is tested with sglang {', '.join(releases.TESTED)}, not with {version('sglang')}.")


def refused_options() -> Iterator[tuple[str, Callable[[Any], bool], str]]:
    """Everything that is refused: as a user types it, whether it is on of resolved options, why."""
    from sglang.srt.environ import envs

    yield from (*_REJECTED_OPTIONS, *releases.installed().REFUSED)
    for name, is_on, why in _REJECTED_BESIDE_DISAGGREGATION:
        yield f"{name} with --disaggregation-mode", partial(_beside_disaggregation, is_on), why
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        for backend in sorted(_UNSUPPORTED_BACKENDS):
            yield (
                f"--{name.replace('_', '-')} {backend}",
                partial(_is_backend, name, backend),
                "it reads positions as KV indices",
            )
    for name, why in _REJECTED_ENVIRONMENT.items():
        yield name, partial(_is_set, getattr(envs, name)), why
    if releases.installed().NAMES_APP:
        why = "the workers of --tokenizer-worker-num would import an app that loads no plugins"
        yield envs.SGLANG_HTTP_SERVER_APP_PATH.name, _has_another_app, why


def _beside_disaggregation(is_on: Callable[[Any], bool], args: Any) -> bool:
    return args.disaggregation_mode != "null" and is_on(args)


def _has_staging_buffer() -> bool:
    from sglang.srt.environ import envs

    return bool(envs.SGLANG_DISAGG_STAGING_BUFFER.get())


def _is_backend(name: str, backend: str, args: Any) -> bool:
    return getattr(args, name) == backend


def _is_set(variable: Any, _args: Any) -> bool:
    return variable.get()


def _has_another_app(args: Any) -> bool:
    from sglang.srt.environ import envs

    app = envs.SGLANG_HTTP_SERVER_APP_PATH
    return args.tokenizer_worker_num > 1 and app.is_set() and app.get() != APP_OF_WORKERS


def refusals(server_args: Any) -> Iterator[str]:
    """A sentence for each of these that a server has on."""
    from sglang.srt.arg_groups.overrides import resolving_view

    args = resolving_view(server_args)
    return (f"--spec-prefill cannot be combined with {name}: {why}." for name, is_on, why in refused_options() if is_on(args))


def method_refusals(method: str, rows: Iterable[tuple[str, Callable[[Any], bool], str]], server_args: Any) -> Iterator[str]:
    """The same for what one method cannot be combined with: option, whether it is on of resolved options, why."""
    from sglang.srt.arg_groups.overrides import resolving_view

    args = resolving_view(server_args)
    return (
        f"--spec-prefill-method {method} cannot be combined with {name}: {why}." for name, is_on, why in rows if is_on(args)
    )


def prediction_refusals(server_args: Any) -> Iterator[str]:
    """Those of the method kv-prediction."""
    return method_refusals("kv-prediction", _REJECTED_BESIDE_PREDICTION, server_args)


def check_server_options(server_args: Any) -> None:
    """Refuse server options that Speculative Prefill cannot be combined with (docs/operations.md, Failure modes).

    Raises
    ------
    ConfigError
        Names the first such flag.
    """
    for sentence in refusals(server_args):
        raise ConfigError(sentence)
    if _is_grpc(server_args):
        logger.warning(
            "--spec-prefill with --smg-grpc-mode: its front end checks no fields, so that the scheduler aborts requests with "
            "bad ones, and its replies do not say what was done."
        )


def cannot_read(server_args: Any) -> Iterator[tuple[str, str]]:
    """Options with which a front end makes no tokens of a draft's own: the option, why."""
    if server_args.skip_tokenizer_init:
        yield "--skip-tokenizer-init", "ids must become text"
    if _is_grpc(server_args):
        yield "--smg-grpc-mode", "its front end passes ids only"


def _is_grpc(server_args: Any) -> bool:
    from sglang.srt.arg_groups.overrides import resolving_view

    return resolving_view(server_args).smg_grpc_mode


def reads_prompts(server_args: Any) -> bool:
    """Whether a server prefills: the decode side of a disaggregated pair gets prompts prefilled."""
    return server_args.disaggregation_mode != "decode"


def cannot_use(settings: Any, server_args: Any) -> Iterator[tuple[str, str, str]]:
    """Of a configuration's or a request's settings those that can never work on a server: field, the server's option, why."""
    if (mode := server_args.disaggregation_mode) != "null":
        for name in needs_radix_cache(settings):
            yield name, f"--disaggregation-mode {mode}", "what is dropped cannot return to the decode side"
    if server_args.disable_radix_cache:
        for name in needs_radix_cache(settings):
            yield name, "--disable-radix-cache", "prompts would be computed anew"
    if server_args.pp_size > 1:
        for name in needs_radix_cache(settings):
            yield name, f"--pp-size {server_args.pp_size}", "the stages after the first one would not know of it"
    limit = server_args.max_queued_requests
    if limit is not None and limit < SHORTEST_QUEUE:
        for name in needs_queue(settings):
            yield name, f"--max-queued-requests {limit}", "requests go back to the queue, which needs a place for others too"
