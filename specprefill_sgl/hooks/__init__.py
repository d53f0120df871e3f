"""Every place where SGLang is hooked, and the check that all hooks are in place. Only this folder touches SGLang's objects.

SGLang logs and swallows errors of plugins and hooks, so a half-applied set would serve wrong answers; `verify` refuses it.
"""

from importlib.metadata import version
from typing import NamedTuple

from specprefill_sgl import compat

_SCHEDULER = "sglang.srt.managers.scheduler.Scheduler"
_WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
_DISAGGREGATION = "sglang.srt.disaggregation"
_OPENAI = "sglang.srt.entrypoints.openai"
_ANTHROPIC = "sglang.srt.entrypoints.anthropic.serving.AnthropicServing"
_TOKENIZER_MANAGER = "sglang.srt.managers.tokenizer_manager.TokenizerManager"


class Hook(NamedTuple):
    """A target in SGLang, how it is wrapped, our function as `module:name`, and the parameters the function counts on."""

    target: str
    kind: str
    function: str
    parameters: tuple[str, ...]

    @property
    def path(self) -> str:
        """The function as `pkgutil.resolve_name` reads it."""
        return f"{__name__}.{self.function}"


_NEWEST = (
    Hook("sglang.srt.server_args.ServerArgs.add_cli_args", "AFTER", "launch:add_flags", ("parser",)),
    Hook("sglang.srt.server_args.ServerArgs.from_cli_args", "AFTER", "launch:attach_flags", ("cls", "args")),
    Hook("sglang.srt.server_args.ServerArgs.check_server_args", "AFTER", "launch:check_at_start", ("self",)),
    Hook(f"{_TOKENIZER_MANAGER}._validate_one_request", "BEFORE", "frontend:check_request", ("self", "obj", "input_ids")),
    Hook(f"{_TOKENIZER_MANAGER}._tokenize_one_request", "AROUND", "reading:read_one", ("self", "obj")),
    Hook(f"{_TOKENIZER_MANAGER}._batch_tokenize_and_process", "AROUND", "reading:read_batch", ("self", "batch_size", "obj")),
    Hook(
        f"{_TOKENIZER_MANAGER}.update_request_meta_info",
        "AROUND",
        "frontend:attach_reply",
        ("self", "meta_info", "state", "customized_info", "index", "finish_reason"),
    ),
    Hook("sglang.srt.entrypoints.api_contract.generate_contract_error", "AFTER", "frontend:check_generate_body", ("body",)),
    Hook(
        f"{_OPENAI}.serving_base.OpenAIServingBase.handle_request",
        "AROUND",
        "frontend:check_openai_request",
        ("self", "request", "raw_request"),
    ),
    Hook(
        f"{_OPENAI}.serving_chat.OpenAIServingChat._process_messages",
        "AROUND",
        "converted:process_messages",
        ("self", "request", "is_multimodal"),
    ),
    Hook(f"{_ANTHROPIC}.handle_messages", "AROUND", "converted:read_message", ("self", "request", "raw_request")),
    Hook(
        f"{_OPENAI}.serving_responses.OpenAIServingResponses.create_responses",
        "AROUND",
        "converted:read_response",
        ("self", "request", "raw_request"),
    ),
    Hook(
        f"{_OPENAI}.serving_responses.OpenAIServingResponses._make_request_with_harmony",
        "AFTER",
        "converted:protect_harmony",
        ("self", "request", "prev_response"),
    ),
    Hook(f"{_OPENAI}.protocol.ResponsesRequest.to_sampling_params", "AFTER", "converted:hand_through", ("self",)),
    Hook(f"{_ANTHROPIC}._generate_anthropic_stream", "AROUND", "openai:extend_message_stream", ("self",)),
    Hook(f"{_ANTHROPIC}._convert_response", "AFTER", "openai:extend_message", ("self", "response")),
    Hook(
        f"{_OPENAI}.serving_responses.OpenAIServingResponses._build_response",
        "AFTER",
        "openai:extend_response",
        ("request", "sampling_params"),
    ),
    Hook(f"{_TOKENIZER_MANAGER}.generate_request", "AROUND", "openai:watch_generation", ("self", "obj")),
    *(
        Hook(f"{_OPENAI}.{function}", kind, f"openai:{name}", ("self", *parameters))
        for function, kind, name, parameters in (
            ("serving_chat.OpenAIServingChat._generate_chat_stream", "AROUND", "extend_stream", ()),
            ("serving_completions.OpenAIServingCompletion._generate_completion_stream", "AROUND", "extend_stream", ()),
            ("serving_chat.OpenAIServingChat._build_chat_response", "AFTER", "extend_reply", ("request", "ret")),
            (
                "serving_completions.OpenAIServingCompletion._build_completion_response",
                "AFTER",
                "extend_reply",
                ("request", "ret"),
            ),
        )
    ),
    Hook("sglang.srt.entrypoints.http_server.ORJSONRequest.json", "AROUND", "frontend:check_json", ("self",)),
    Hook(f"{_SCHEDULER}.maybe_init_draft_worker", "AFTER", "setup:init_methods", ("self",)),
    Hook(f"{_SCHEDULER}.init_memory_pools", "AFTER", "lazy:widen_table", ("self",)),
    Hook(f"{_SCHEDULER}.init_all_attention_backends", "AFTER", "setup:init_attention_backend", ("self",)),
    Hook(f"{_SCHEDULER}.init_all_cuda_graphs", "AFTER", "setup:init_runner", ("self",)),
    Hook(
        f"{_SCHEDULER}._get_new_batch_prefill_raw",
        "AROUND",
        "scheduler:speculate",
        ("self", "prefill_delayer_single_pass", "running_batch"),
    ),
    Hook(f"{_SCHEDULER}._release_aborted_request", "AFTER", "scheduler:forget", ("self", "req")),
    Hook(f"{_SCHEDULER}.init_kv_events_publisher", "AFTER", "kv_events:announce_plain_blocks", ("self",)),
    Hook(f"{_SCHEDULER}._prefetch_kvcache", "AROUND", "storage:prefetch", ("self", "req")),
    Hook(f"{_SCHEDULER}.flush_cache", "AROUND", "flush:flush", ("self", "empty_cache")),
    Hook(f"{_SCHEDULER}.get_internal_state", "AFTER", "internal_state:add_internal_state", ("self", "recv_req")),
    Hook(
        "sglang.srt.constrained.grammar_manager.GrammarManager.has_waiting_grammars",
        "AFTER",
        "scheduler:no_grammar_behind_the_stage",
        ("self",),
    ),
    *(
        Hook(f"{_WEIGHTS}.update_weights_from_{source}", "AFTER", "prediction:outdate", ("self", "recv_req"))
        for source in ("disk", "distributed", "tensor", "ipc")
    ),
    Hook("sglang.srt.managers.schedule_batch.ScheduleBatch.prepare_for_extend", "AFTER", "model:mask_ids", ("self",)),
    Hook(
        "sglang.srt.managers.schedule_batch._compute_chunked_req_next_prompt_token",
        "AROUND",
        "model:plain_next_token",
        ("chunked_req", "vocab_size"),
    ),
    Hook(
        "sglang.srt.sampling.penaltylib.orchestrator.BatchedPenalizerOrchestrator.cumulate_output_tokens",
        "BEFORE",
        "model:mask_penalized_ids",
        ("self", "output_ids"),
    ),
    Hook(
        "sglang.srt.model_executor.forward_batch_info.ForwardBatch.init_new",
        "AFTER",
        "model:offset_positions",
        ("cls", "batch", "model_runner"),
    ),
    Hook(
        "sglang.srt.managers.scheduler_components.output_streamer._GenerationStreamAccumulator.accept",
        "AFTER",
        "report:report",
        ("self", "req"),
    ),
    Hook(f"{_DISAGGREGATION}.utils.MetadataBuffers.set_buf", "AFTER", "prefill_side:hand_over", ("self", "req")),
    Hook(
        f"{_DISAGGREGATION}.decode.DecodeTransferQueue._commit_transfer_to_req",
        "AROUND",
        "decode_side:take_over",
        ("self", "decode_req"),
    ),
    Hook(f"{_DISAGGREGATION}.decode.DecodePreallocQueue.hold_rebootstrap", "BEFORE", "decode_side:go_dense", ("self", "req")),
    Hook("sglang.srt.managers.schedule_batch.Req.build_rebootstrap_payload", "AFTER", "decode_side:ask_dense", ("self",)),
)


def of_release(release: str) -> tuple[Hook, ...]:
    """The hooks of a tested release: in an older one some targets are elsewhere (`compat.releases`)."""
    moved = compat.releases.of(release).MOVED
    return tuple(hook._replace(**moved.get(hook.target, {})) for hook in _NEWEST)


HOOKS = of_release(version("sglang"))
# of backends that not every server can import: wrapped by `hooks.speculation` once they are loaded
WHEN_LOADED = tuple(
    Hook(f"{backend}.common_template", "AROUND", "speculation:index_by_lengths", ("self", "forward_batch"))
    for backend in compat.INDEXED_BY_POSITIONS
)


def verify() -> None:
    """Raise unless every hook is in place in this process, by the plugin or in SGLang's sources (`hooks.attachment`).

    Raises
    ------
    ConfigError
        Names the first target that was not hooked.
    """
    from specprefill_sgl.hooks import attachment

    for hook in HOOKS:
        attachment.check(hook)
