"""LongBench and RULER on a running server with real models, through lm-eval: dense against SpecPrefill at every keep ratio.

Nothing is fetched. `--data-dir` holds what the benchmarks' authors publish: `longbench/<task>.jsonl` (LongBench's files)
and `ruler/<task>/validation.jsonl` or `ruler/<task>.jsonl` (what RULER's scripts generate). Prompts and scores are lm-eval's.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

from benchmarks.quality import ask
from benchmarks.quality.matrix import SPECPREFILL
from benchmarks.quality.results import Results

BENCHMARKS = ("longbench", "ruler")
_RULER_TOKENS = 128
_RULER_ANY = "qa_"  # RULER's question answering accepts any of the answers, its other tasks want all


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("real models, through lm-eval")
    group.add_argument("--base-url", help="of a server started with --spec-prefill; --tasks is then of longbench,ruler")
    group.add_argument("--data-dir", type=Path, help="folder with longbench/ and ruler/")
    group.add_argument("--limit", type=int, help="documents per task")
    group.add_argument("--concurrent", type=int, default=4, help="requests in flight")


def run(arguments: argparse.Namespace) -> None:
    """Scores of every task and method to `out`/harness.jsonl, and a Markdown table beside it."""
    configs = task_configs(arguments)
    results = Results(arguments.out / "harness.jsonl")
    for method, ratio in [(ask.DENSE, 1.0), *((SPECPREFILL, ratio) for ratio in arguments.keep_ratios)]:
        todo = [config for config in configs if _row(method, ratio, config) not in results]
        if not todo:
            continue
        for name, scores, documents in _evaluate(arguments, todo, method, ratio):
            row = _row(method, ratio, {"task": name})
            results.add({**row, "documents": documents, "scores": scores, "server": _server(arguments.base_url)})
    text = table(results.rows)
    (arguments.out / "harness.md").write_text(text + "\n")
    print(text)


def task_configs(arguments: argparse.Namespace) -> list[dict]:
    """lm-eval's configurations for every local file of the benchmarks asked for; exits with one sentence if none."""
    wanted = arguments.tasks.split(",") if arguments.tasks else list(BENCHMARKS)
    if unknown := [name for name in wanted if name not in BENCHMARKS]:
        sys.exit(f"--tasks: with --base-url only {', '.join(BENCHMARKS)} are known, got {unknown[0]!r}.")
    if arguments.data_dir is None or not arguments.data_dir.is_dir():
        sys.exit(f"--data-dir must be a folder with {' or '.join(BENCHMARKS)} in it, got {arguments.data_dir}.")
    build = {"longbench": _longbench, "ruler": _ruler}
    configs = []
    for name in wanted:
        files = sorted([*(arguments.data_dir / name).glob("*.jsonl"), *(arguments.data_dir / name).glob("*/validation.jsonl")])
        if not files:
            sys.exit(f"--data-dir: {arguments.data_dir / name} has no .jsonl files.")
        configs += [build[name](path) for path in files]
    return configs


def table(rows: list[dict]) -> str:
    """Score per task; one column per keep ratio, benchmarks' groups are told by the task names."""
    ratios = sorted({row["keep_ratio"] for row in rows if row["method"] == SPECPREFILL})
    lines = ["| task | documents | dense | " + " | ".join(f"keep {ratio:g}" for ratio in ratios) + " |"]
    lines.append("|---" * (3 + len(ratios)) + "|")
    for task in sorted({row["task"] for row in rows}):
        mine = {(row["method"], row["keep_ratio"]): row for row in rows if row["task"] == task}
        shown = [mine.get((ask.DENSE, 1.0)), *(mine.get((SPECPREFILL, ratio)) for ratio in ratios)]
        documents = next(row["documents"] for row in shown if row)
        cells = [f"{next(iter(row['scores'].values())):.3f}" if row else "" for row in shown]
        lines.append(f"| {task} | {documents} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(method: str, ratio: float, config: dict) -> dict:
    return {"method": method, "keep_ratio": ratio, "task": config["task"]}


def _longbench(path: Path) -> dict:
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    yaml = Path(lm_eval.tasks.__file__).parent / "longbench" / f"{path.stem}.yaml"
    if not yaml.exists():
        sys.exit(f"--data-dir: {path.name} is none of LongBench's tasks.")
    config = load_yaml(yaml)
    config.pop("dataset_name", None)
    config.pop("tag", None)
    return {**config, **_local(path), "process_docs": _with_question}


def _ruler(path: Path) -> dict:
    from lm_eval.tasks.ruler import common_utils

    name = path.parent.name if path.name == "validation.jsonl" else path.stem
    score = common_utils.string_match_part if name.startswith(_RULER_ANY) else common_utils.string_match_all
    return {
        "task": f"ruler_{name}",
        "output_type": "generate_until",
        "test_split": "test",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "process_results": functools.partial(_ruler_score, score),
        "metric_list": [{"metric": "score", "aggregation": "mean", "higher_is_better": True}],
        "generation_kwargs": {"temperature": 0.0, "max_gen_toks": _RULER_TOKENS, "until": []},
        **_local(path),
    }


def _ruler_score(score, document: dict, results: list[str]) -> dict[str, float]:
    from lm_eval.tasks.ruler.common_utils import postprocess_pred

    return {"score": score(postprocess_pred(results), [document["outputs"]])}


def _local(path: Path) -> dict:
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path.resolve())}}}


def _with_question(dataset):
    """LongBench's own files call the question `input`; lm-eval's prompts call it `question`."""
    if "question" in dataset.column_names or "input" not in dataset.column_names:
        return dataset
    return dataset.rename_column("input", "question")


def _evaluate(arguments: argparse.Namespace, configs: list[dict], method: str, ratio: float):
    """(task, scores, documents) of lm-eval's run on the OpenAI completions route."""
    import copy

    import lm_eval

    custom: dict[str, object] = {"spec_prefill": method != ask.DENSE}
    if method != ask.DENSE:
        custom["spec_prefill_keep_ratio"] = ratio
    outcome = lm_eval.simple_evaluate(
        model="local-completions",
        model_args={
            "base_url": arguments.base_url.rstrip("/") + "/v1/completions",
            "model": "default",
            "tokenizer_backend": None,
            "tokenized_requests": False,
            "num_concurrent": arguments.concurrent,
            "max_length": 2**31,
            "timeout": 3600,
        },
        tasks=copy.deepcopy(configs),
        gen_kwargs={"custom_params": custom, "temperature": 0},
        limit=arguments.limit,
        bootstrap_iters=0,
        log_samples=True,
    )
    for name, values in outcome["results"].items():
        scores = {key.split(",")[0]: value for key, value in values.items() if isinstance(value, float) and "stderr" not in key}
        yield name, scores, len(outcome["samples"][name])


@functools.cache
def _server(base_url: str) -> dict:
    """What the server says of itself: models, SGLang's version, SpecPrefill's settings."""
    import requests

    info = requests.get(base_url.rstrip("/") + "/server_info", timeout=60).json()
    names = ("model_path", "tp_size", "dtype", "quantization", "chunked_prefill_size", "version")
    state = info.get("internal_states", [{}])[0]
    return json.loads(json.dumps({**{name: info.get(name) for name in names}, "spec_prefill": state.get("spec_prefill")}))
