"""Where a sparse request's time goes, by stage and operator: SGLang's own profiler around one prompt.

`python -m benchmarks.speed.profile` sends `/start_profile`, a sparse prompt and `/stop_profile` to a server, and sums up the
trace. Time is an operator's own, without the operators it calls. A profile slows small operators down: its shares say where to
look, `ttft` says how long it takes.
"""

import gzip
import itertools
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import requests
from tqdm import tqdm

from benchmarks.launch import random_ids
from benchmarks.quality.results import Results, read
from benchmarks.speed import arguments as shared
from benchmarks.speed import drawing
from benchmarks.speed.measure import first_tokens_ms
from benchmarks.speed.servers import serve

_OPERATOR, _SPAN = ("cpu_op",), "user_annotation"  # categories of a trace
_DEVICE, _DEVICE_SPAN = ("kernel", "gpu_memcpy", "gpu_memset"), "gpu_user_annotation"
_OURS = "spec_prefill."
_TARGET, _REST, _BETWEEN = "target", "rest", "(between operators)"


def main() -> None:
    """One row per round; the first does not count."""
    parser = shared.parser("profile", __doc__)
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--keep-ratio", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    out = shared.rows_of("profile", arguments)
    out.unlink(missing_ok=True)
    results = Results(out)
    sizes = shared.sizes(arguments, arguments.length + 64, arguments.keep_ratio)
    with tempfile.TemporaryDirectory() as folder, serve(arguments.pair, Path(folder), sizes, with_draft=False) as servers:
        for number in tqdm(range(-1, arguments.rounds), desc="rounds"):
            ids = random_ids(random.Random(number), arguments.length)
            own = own_ms(profiled(servers.sparse, ids, Path(folder) / str(number)))
            if number >= 0:
                row = {"length": arguments.length, "keep_ratio": arguments.keep_ratio, "number": number}
                listed = [{"stage": stage, "operator": name, "ms": round(ms, 3)} for (stage, name), ms in own.items()]
                results.add({**row, "own": listed})
    rows = read(out)
    print(table(rows))
    plot(rows, out.with_suffix(".png"))


def profiled(url: str, ids: list[int], folder: Path) -> list[dict]:
    """Events of the trace that the first rank wrote."""
    _post(url + "/start_profile", {"output_dir": str(folder), "with_stack": False, "record_shapes": False})
    first_tokens_ms(url, [ids], None)
    _post(url + "/stop_profile", {})
    (trace,) = folder.glob("*TP-0*.trace.json.gz")
    return json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]


def own_ms(events: list[dict]) -> dict[tuple[str, str], float]:
    """Milliseconds by stage and operator: of the accelerator's work where the trace has any, else of the processor's.

    An operator belongs to the outermost of our stages around it, else to the target if a forward of SGLang's is, else to the
    rest. What a stage takes beside its operators counts as `between operators`.
    """
    timed = [event for event in events if event.get("ph") == "X"]
    on_device = any(event.get("cat") in _DEVICE for event in timed)
    known = (*_DEVICE, _DEVICE_SPAN) if on_device else (*_OPERATOR, _SPAN)
    threads: dict[tuple, list[dict]] = {}
    for event in timed:
        if event.get("cat") in known:
            threads.setdefault((event["pid"], event["tid"]), []).append(event)
    found: Counter[tuple[str, str]] = Counter()
    for stack in itertools.chain.from_iterable(map(_stacks, threads.values())):
        found[_key(stack)] += stack[-1]["dur"] / 1e3
        if len(stack) > 1:
            found[_key(stack[:-1])] -= stack[-1]["dur"] / 1e3
    return {key: ms for key, ms in found.items() if key != (_REST, _BETWEEN)}


def table(rows: list[dict], most: int = 12) -> str:
    """Markdown: the operators with the largest shares of all profiled time, over all rounds."""
    total = _total(rows)
    everything = sum(total.values())
    shown = [(f"{stage} | `{operator}`", ms) for (stage, operator), ms in total.most_common(most)]
    shown.append((" | all others", everything - sum(ms for _, ms in shown)))
    lines = ["| stage | operator | ms a prompt | share |", "|---" * 4 + "|"]
    return "\n".join(lines + [f"| {name} | {ms:.1f} | {100 * ms / everything:.1f} % |" for name, ms in shown])


def plot(rows: list[dict], path: Path, most: int = 7) -> None:
    """A bar per stage, its operators on top of each other."""
    total = _total(rows)
    stages = list(dict.fromkeys(stage for stage, _ in total))
    by_operator: dict[str, Counter[str]] = {}
    for (stage, operator), ms in total.items():
        by_operator.setdefault(operator, Counter())[stage] += ms
    largest = sorted(by_operator, key=lambda operator: -by_operator[operator].total())[:most]
    others = sum((by_operator[operator] for operator in by_operator.keys() - set(largest)), Counter())
    below: Counter[str] = Counter()
    with drawing.axes(path, "stage", "ms a prompt") as axes:
        for name, ms in [*((operator, by_operator[operator]) for operator in largest), ("others", others)]:
            axes.bar(stages, [ms[stage] for stage in stages], bottom=[below[stage] for stage in stages], label=name)
            below += ms


def _total(rows: list[dict]) -> Counter[tuple[str, str]]:
    """Milliseconds a prompt by stage and operator."""
    total: Counter[tuple[str, str]] = Counter()
    for row in rows:
        for one in row["own"]:
            total[one["stage"], one["operator"]] += one["ms"] / len(rows)
    return total


def _post(url: str, body: dict) -> None:
    requests.post(url, json=body, timeout=600).raise_for_status()


def _stacks(events: list[dict]) -> Iterator[list[dict]]:
    """For every event of a thread: it, below everything that it runs inside of."""
    stack: list[dict] = []
    for event in sorted(events, key=lambda event: (event["ts"], -event["dur"])):
        # a kernel contains nothing, but the next may begin before it ends
        while stack and (stack[-1]["cat"] in _DEVICE or stack[-1]["ts"] + stack[-1]["dur"] <= event["ts"]):
            stack.pop()
        stack.append(event)
        yield stack


def _key(stack: list[dict]) -> tuple[str, str]:
    """Stage and operator of what is on top."""
    spans = [event["name"] for event in stack if event["cat"] in (_SPAN, _DEVICE_SPAN)]
    name = stack[-1]["name"] if stack[-1]["cat"] not in (_SPAN, _DEVICE_SPAN) else _BETWEEN
    ours = next((span.removeprefix(_OURS) for span in spans if span.startswith(_OURS)), None)
    return ours or (_TARGET if any(span.startswith("step[") for span in spans) else _REST), name


if __name__ == "__main__":
    main()
