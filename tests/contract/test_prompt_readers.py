"""Every place in SGLang that reads a request's prompt ids was looked at: a sparse request's are coded there.

A new count after an upgrade means a reader nobody has judged; a coded id that reaches an index or a hash ends the server
(`ScheduleBatch.cumulate_penalty_output_tokens` did, and is hooked). Read the place, then correct the count.
"""

import re
from importlib.metadata import version
from pathlib import Path

import sglang.srt

# file -> mentions of origin_input_ids, by why they are harmless
READS_LENGTHS_OR_KEYS = {
    "beam_search/coordinator.py": 1,
    "managers/schedule_policy.py": 4,
    "managers/scheduler_components/batch_result_processor.py": 3,
    "managers/scheduler_components/metrics_reporter.py": 4,
    "managers/utils.py": 4,
    "mem_cache/common.py": 3,
    "mem_cache/radix_cache.py": 1,
    "mem_cache/unified_radix_cache.py": 1,
    "managers/mm_utils.py": 1,
}
JUDGED_LINE_BY_LINE = {
    "managers/schedule_batch.py": 26,  # masked before the model and before penalizers; detokenized from _unpadded
    "managers/scheduler.py": 26,  # at arrival, before the stage, or lengths
    "managers/scheduler_components/logprob_result_processor.py": 2,  # empty slices: logprobs start at the end of the prompt
    "managers/scheduler_components/output_streamer.py": 2,  # the prompt's length; corrected by our hook
    "model_executor/forward_batch_info.py": 1,  # diffusion models, refused
}
BEFORE_THE_STAGE = {"constrained/grammar_manager.py": 1, "managers/scheduler_components/dynamic_chunk_sizer.py": 1}
REFUSED_OR_DENSE = {
    "disaggregation/decode.py": 15,
    "disaggregation/decode_hicache_mixin.py": 4,
    "disaggregation/decode_kvcache_offload_manager.py": 4,
    "disaggregation/decode_schedule_batch_mixin.py": 1,
    "disaggregation/prefill.py": 7,
    "dllm/mixin/req.py": 4,
    "dllm/mixin/scheduler.py": 1,
    "hardware_backend/npu/sparsity_driven_kv_offload/manager.py": 1,
    "kv_canary/config.py": 1,
    "kv_canary/plan_input.py": 1,
    "kv_canary/req_to_expected_token_ids_manager.py": 5,
    "mem_cache/sparsity/core/sparse_coordinator.py": 1,
    "mem_cache/storage/flexkv/flexkv_radix_cache.py": 2,
    "model_executor/model_runner_components/ngram_embedding_manager.py": 3,
    "models/locate_anything.py": 1,
    "rust_server/server.py": 1,
    "sampling/custom_logit_processor.py": 2,
    "sampling/watermarking/core.py": 2,
    "session/session_controller.py": 8,
    "session/streaming_session.py": 2,
    "speculative/dspark_components/dspark_verify.py": 1,
    "speculative/ngram_worker.py": 1,
}
# where an older release has other numbers: the same files, of what is refused or dense, and speculation by NGRAM, refused there
IN_OLDER_RELEASES = {
    "0.5.22": {
        "constrained/grammar_manager.py": 0,
        "disaggregation/decode_hicache_mixin.py": 3,
        "dllm/mixin/req.py": 2,
        "model_executor/forward_batch_info.py": 0,
        "model_executor/model_runner_components/ngram_embedding_manager.py": 2,
        "rust_server/server.py": 0,
        "speculative/ngram_worker.py": 4,
    }
}


def test_no_reader_is_new():
    root = Path(sglang.srt.__path__[0])
    found = {}
    for file in root.rglob("*.py"):
        lines = sum(bool(re.search(r"origin_input_ids\b", line)) for line in file.read_text(encoding="utf-8").splitlines())
        if lines:
            found[file.relative_to(root).as_posix()] = lines
    judged = READS_LENGTHS_OR_KEYS | JUDGED_LINE_BY_LINE | BEFORE_THE_STAGE | REFUSED_OR_DENSE
    judged |= IN_OLDER_RELEASES.get(version("sglang"), {})
    assert found == {file: lines for file, lines in judged.items() if lines}
