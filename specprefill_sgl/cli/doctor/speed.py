"""Step `speed BACKEND`: a pair of real size, weights made up: time to first token, dense and sparse, beside the bound."""

import statistics
import tempfile
from pathlib import Path

from specprefill_sgl.cli.doctor import machine, models
from specprefill_sgl.cli.doctor.checks import Recorder
from specprefill_sgl.cli.doctor.server import STOCK, Server, ServerError, serve, sparse_flags

_ROUNDS = 3
_KEEP_RATIO = 0.1
_REACHED = 0.5  # of the bound: less means that something other than the two models takes the time
_DUMMY = ("--load-format", "dummy")
_DENSE = {"spec_prefill": False}
_SPARSE = {"spec_prefill_keep_ratio": _KEEP_RATIO}


def run(recorder: Recorder, backend: str) -> None:
    """The draft alone on stock SGLang, then the pair."""
    pair = models.REAL_ON_GPU if machine.has_gpu() else models.REAL_ON_CPU
    if machine.has_gpu() and (gib := _memory_gib()) < pair.gib:
        recorder.not_run("step", f"needs {pair.gib} GiB of GPU memory, this one has {gib}")
        return
    with tempfile.TemporaryDirectory() as folder:
        target, draft = models.write(pair, Path(folder), weights=False)
        log = recorder.folder / f"speed-{backend}-draft.log"
        try:
            with serve(draft, pair, backend, log, *_DUMMY, env=STOCK) as server:
                alone = _median(server, pair, "draft", None)
                floor = _median(server, pair, "floor", None, length=4)
            log = recorder.folder / f"speed-{backend}-server.log"
            with serve(target, pair, backend, log, *_DUMMY, *sparse_flags(draft, pair)) as server:
                _compare(recorder, server, pair, alone, floor)
        except ServerError as error:
            recorder.holds("server", False, error, log=log)


def _compare(recorder: Recorder, server: Server, pair: models.Pair, draft_alone: float, floor: float) -> None:
    sparse = _median(server, pair, "whole", _SPARSE)
    reply = server.generate(models.prompt(pair, "whole/0"), _SPARSE, 1)
    said = reply["meta_info"]["spec_prefill"]
    recorder.holds("the request is sparse", said["applied"], said["reason"] or f"{said['kept_tokens']} kept", log=server.log)
    if not said["applied"]:
        return
    dense = _median(server, pair, "whole", _DENSE)
    kept_alone = _median(server, pair, "kept", _DENSE, length=said["kept_tokens"])
    ratio, bound = dense / sparse, dense / (draft_alone + kept_alone - floor)
    times = f"{dense * 1e3:.0f} ms dense, {sparse * 1e3:.0f} ms sparse"
    recorder.holds("sparse is faster", ratio > 1, f"{ratio:.2f}x: {times}, {pair.length} tokens", "above 1x", server.log)
    wanted = f"at least {_REACHED}"
    recorder.holds("of the bound", ratio / bound >= _REACHED, f"{ratio / bound:.2f} of {bound:.2f}x", wanted, server.log)
    alone = f"draft alone {draft_alone * 1e3:.0f}, kept tokens alone {kept_alone * 1e3:.0f}"
    recorder.measured("stages, ms", f"draft {said['draft_ms']:.0f}, scores {said['score_ms']:.0f}; {alone}")


def _median(server: Server, pair: models.Pair, what: str, custom: dict | None, length: int | None = None) -> float:
    """Seconds to the first token; the first prompt is not counted."""
    times = [
        server.generate(models.prompt(pair, f"{what}/{number}", length), custom, 1)["seconds"] for number in range(-1, _ROUNDS)
    ]
    return statistics.median(times[1:])


def _memory_gib() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory >> 30
