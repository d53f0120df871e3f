"""Step `answers BACKEND`: a small pair with random weights; what the server answers, against transformers' eager attention."""

import re
import tempfile
from pathlib import Path
from typing import Any

import torch

from specprefill_sgl.cli.doctor import machine, models
from specprefill_sgl.cli.doctor.checks import Recorder
from specprefill_sgl.cli.doctor.server import Server, ServerError, serve, sparse_flags

_TOKENS = 16
_SPARSE = {"spec_prefill_keep_ratio": 0.2, "spec_prefill_return_positions": True}
_DENSE = {"spec_prefill": False}


def run(recorder: Recorder, backend: str) -> None:
    """Checks of one server, and of its log."""
    pair = models.SMALL_ON_GPU if machine.has_gpu() else models.SMALL_ON_CPU
    log = recorder.folder / f"answers-{backend}-server.log"
    with tempfile.TemporaryDirectory() as folder:
        target, draft = models.write(pair, Path(folder), weights=True)
        try:
            with serve(target, pair, backend, log, *sparse_flags(draft, pair)) as server:
                _ask(recorder, server, pair, target)
        except ServerError as error:
            recorder.holds("server", False, error, log=log)


def _ask(recorder: Recorder, server: Server, pair: models.Pair, target: Path) -> None:
    ids = models.prompt(pair, 1)
    _, dense, again = (server.generate(ids, _DENSE, _TOKENS) for _ in range(3))  # the first may compile
    whole = server.generate(ids, {"spec_prefill_keep_ratio": 1}, _TOKENS)
    sparse = server.generate(ids, _SPARSE, _TOKENS)
    repeated = server.generate(ids, _SPARSE, _TOKENS, flush=False)
    noise = _distance(logprobs(dense), logprobs(again))
    same = whole["output_ids"] == dense["output_ids"]
    apart, most = _distance(logprobs(whole), logprobs(dense)), 2 * noise + 1e-5
    recorder.holds(
        "keep ratio 1 equals dense",
        same and apart <= most and whole["meta_info"]["spec_prefill"]["applied"],
        f"tokens {'the same' if same else 'differ'}, logprobs within {apart:.1e}",
        f"within {most:.0e}, twice what two dense ones differ",
        server.log,
    )
    _against_reference(recorder, server, target, ids, dense, sparse)
    kept = sparse["meta_info"]["spec_prefill"]["kept_tokens"]
    cached = repeated["meta_info"]["cached_tokens"]
    page = server.info().get("page_size") or 1
    recorder.holds(
        "the radix cache is used again", cached == (kept - 1) // page * page, cached, f"{(kept - 1) // page * page}", server.log
    )
    _how_it_ran(recorder, server)


def _against_reference(
    recorder: Recorder, server: Server, target: Path, ids: list[int], dense: dict[str, Any], sparse: dict[str, Any]
) -> None:
    """Both against float32: a sparse answer may be no further from it than a dense one is, whose positions nobody touched."""
    said = sparse["meta_info"]["spec_prefill"]
    recorder.holds(
        "the request is sparse", said["applied"], said["reason"] or f"{said['kept_tokens']} of {len(ids)} kept", log=server.log
    )
    if not said["applied"]:
        return
    kept, everything = said["positions"], list(range(len(ids)))
    expected = reference(target, ids, kept, kept, sparse["output_ids"])
    baseline = _distance(logprobs(dense), reference(target, ids, everything, everything, dense["output_ids"]))
    moved = reference(target, ids, kept, list(range(len(kept))), sparse["output_ids"])
    apart, most = _distance(logprobs(sparse), expected), 3 * baseline + 1e-3
    wanted = f"within {most:.0e}, three times what dense differs"
    recorder.holds("sparse equals an eager reference", apart <= most, f"logprobs within {apart:.1e}", wanted, server.log)
    wrong = _distance(logprobs(sparse), moved)
    recorder.holds("and none with other positions", wrong > most, f"{wrong:.1e}", f"above {most:.0e}", server.log)


def _how_it_ran(recorder: Recorder, server: Server) -> None:
    overlap = not server.info()["disable_overlap_schedule"]
    recorder.holds("overlap schedule", overlap, "on" if overlap else "off", "on", server.log)
    if not machine.has_gpu():
        recorder.not_run("decode under CUDA graphs", machine.NO_GPU)
        return
    used = graphs_used(server.log.read_text())
    recorder.holds(
        "decode under CUDA graphs",
        bool(used) and set(used) == {"True"},
        f"{used.count('True')} of {len(used)} logged",
        "all",
        server.log,
    )


def graphs_used(log: str) -> list[str]:
    """What SGLang's log says of each batch of decodes: `True` or `False`."""
    return re.findall(r"Decode batch.*cuda graph: (\w+)", log)


def logprobs(reply: dict[str, Any]) -> list[float]:
    """Of the tokens of an answer."""
    return [value for value, *_ in reply["meta_info"]["output_token_logprobs"]]


@torch.no_grad()
def reference(folder: Path, ids: list[int], kept: list[int], positions: list[int], answer: list[int]) -> list[float]:
    """Log-probabilities of an answer's tokens after some of the prompt's tokens at these positions: transformers, in float32.

    The answer goes on behind the prompt, or behind the last position where that is not the prompt's.
    """
    from transformers import AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").to(device).eval()
    tokens = [*(ids[at] for at in kept), *answer[:-1]]
    first = positions[-1] + 1
    where = [*positions, *range(first, first + len(answer) - 1)]
    logits = model(
        input_ids=torch.tensor([tokens], device=device),
        position_ids=torch.tensor([where], device=device),
        attention_mask=torch.ones(1, len(tokens), dtype=torch.long, device=device),
        logits_to_keep=len(answer),
    ).logits[0]
    chosen = torch.tensor(answer, device=device)[:, None]
    return logits.float().log_softmax(dim=-1).gather(1, chosen)[:, 0].tolist()


def _distance(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))
