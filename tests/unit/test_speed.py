"""The speed benchmarks' own arithmetic, on made-up rows."""

import functools
import json

import numpy as np
import pytest

from benchmarks import launch
from benchmarks.speed import max_qps, measure, overhead, pairs, pipeline, profile, report, scaling, serving


def _row(length=1000, number=0, **changed):
    stages = {"draft": 10.0, "lookahead": 2.0, "score": 1.0, "select": 0.5}
    times = {"dense": 400.0, "dense_again": 404.0, "dense_with_plugin": 402.0, "sparse": 50.0}
    times |= {"draft_alone": 10.0, "target_alone": 32.0, "floor": 2.0}
    times["stages"] = stages
    return {"length": length, "keep_ratio": 0.1, "batch": 1, "number": number, **times, **changed}


def test_stages_sum_to_the_time_to_the_first_token():
    assert report.parts(_row()) == {
        "draft": 10,
        "lookahead": 2,
        "score": 1,
        "select": 0.5,
        "target": 30,
        "floor": 2,
        "rest": 4.5,
    }


def test_the_bound_counts_both_models_alone_and_nothing_else():
    assert report.ratio(_row()) == 8
    assert report.bound(_row()) == 10


def test_tables_have_a_line_per_cell_and_medians_over_rounds():
    rows = [_row(number=n, sparse=sparse) for n, sparse in enumerate((50.0, 40.0, 80.0))] + [_row(length=2000)]  # a range
    lines = report.ratios_table(rows).splitlines()
    assert len(lines) == 4
    assert "8.00 [5.00, 10.00]x" in lines[2]
    assert "20.0 [12.5, 25.0] %" in report.stages_table(rows).splitlines()[2]


def test_exponents_are_those_of_the_times():
    rows = [_row(length, dense=3e-6 * length**2, draft_alone=1.0) for length in (512, 1024, 4096)]
    slope, width = scaling.exponent(rows, scaling.FIGURES["dense"])
    assert (slope, width) == pytest.approx((2, 0), abs=1e-6)


def test_lengths_without_a_dense_figure_stay_out_of_its_exponent():
    long = _row(8192, peak_mib=3000.0)
    del long["dense"]
    rows = [_row(length, dense=3e-6 * length**2, peak_mib=2000.0 + length) for length in (512, 1024, 4096)] + [long]
    lines = {line.split(" | ")[0]: line.split(" | ") for line in scaling.table(rows).splitlines()}
    assert lines["| dense"][4:] == ["nan", "2.00 ± 0.00 |"]
    assert lines["| peak resident memory, MiB"][4] == "3000"


def test_stages_are_read_from_what_the_log_has_had_since(tmp_path):
    line = "[x] Spec prefill batch, method: draft, #prompt: 1, draft ms: {}, lookahead ms: 2.5, score ms: 1.0, select ms: 0.5\n"
    (tmp_path / "log").write_text(line.format(99.0))
    seen = len(line.format(99.0))
    (tmp_path / "log").write_text(line.format(99.0) + "other\n" + line.format(10.0) + line.format(20.0))
    assert measure._stages(tmp_path / "log", seen) == {"draft": 30.0, "lookahead": 5.0, "score": 2.0, "select": 1.0}


@pytest.mark.parametrize("capacity", [0.3, 1.7, 40.0])
@pytest.mark.parametrize("limits", [max_qps.Limits(2.0, 2.0), max_qps.Limits(2.0, None)])
def test_the_search_ends_between_a_rate_that_passes_and_one_that_fails(capacity, limits):
    def level(rate, count):
        assert count == max(100, np.ceil(5.0 * rate))
        slow = 0.02 if rate <= capacity else 0.05  # of the requests, 3 % are tolerated
        times = np.ones(count)
        times[: round(count * slow)] = 9
        return [(first, 1.0) for first in times]

    rows = list(max_qps.search(functools.partial(max_qps.judge, level, limits, 5.0, 100), 1.0, 4))
    passing = max(row["rate"] for row in rows if row["passes"])
    failing = min(row["rate"] for row in rows if not row["passes"])
    assert passing <= capacity < failing
    assert failing / passing < 1.05


def test_a_backlog_shows_in_the_halves_of_a_level():
    times = [(first, first + 1.0) for first in (1.0, 1.0, 1.2, 5.0, 6.0, 8.0)]
    row = {"method": "sparse", "rate": 0.5, "passes": True, "limits": [9.0, None], "times": times}
    assert max_qps.levels_table([row]).splitlines()[2] == "| sparse | 0.500 | 6 | yes | 1.0 | 6.0 | 8.0 | 9.0 |"


def test_what_the_plugin_costs_is_taken_within_a_round_from_both_runs_on_either_server():
    rows = [
        {
            "stock": {"ttft": ms, "itl": 2.0},
            "plugin": {"ttft": 1.5 * ms, "itl": 2.0},
            "stock_again": {"ttft": 3 * ms, "itl": 1.0},
            "plugin_again": {"ttft": 3.5 * ms, "itl": 1.0},
        }
        for ms in (10.0, 30.0, 20.0)
    ]
    ttft, itl = overhead.table(rows).splitlines()[2:]
    ttft, itl = ([cell.strip() for cell in line.strip("|").split("|")] for line in (ttft, itl))
    assert ttft[1:4] == ["40.00", "1.2500 [1.2500, 1.2500]", "3.0000 [3.0000, 3.0000]"]
    assert ttft[4:] == ["10.0000 [5.0000, 15.0000]", "40.0000 [20.0000, 60.0000]"]
    assert itl[1:] == ["1.50", *(f"{one} [{one}, {one}]" for one in ("1.0000", "0.5000", "0.0000", "-1.0000"))]


def test_figures_of_the_load_benchmark():
    figures = {
        f"{p}_{f}_ms": float(n)
        for n, (f, p) in enumerate((f, p) for f in ("ttft", "tpot", "itl") for p in ("median", "p90", "p99"))
    }
    row = serving.figures({**figures, "request_goodput": 0.5, "completed": 16})
    assert row["itl"] == {"median": 6.0, "p90": 7.0, "p99": 8.0}
    assert (row["goodput"], row["completed"]) == (0.5, 16)


@pytest.mark.parametrize("name", pairs.names())
def test_every_pair_is_one_that_transformers_and_the_draft_check_accept(name, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    configs = [AutoConfig.from_pretrained(folder) for folder in pairs.write(name, tmp_path)]
    about = json.loads((pairs._MODELS / f"{name}.json").read_text())["about"]
    assert about
    assert len({config.vocab_size for config in configs}) == 1
    assert len(AutoTokenizer.from_pretrained(tmp_path / "target")) <= configs[0].vocab_size
    assert configs[0].vocab_size >= launch.VOCABULARY


def test_a_profile_counts_each_operator_without_what_it_calls():
    def event(cat, name, start, dur):
        return {"ph": "X", "cat": cat, "name": name, "ts": start, "dur": dur, "pid": 1, "tid": 2}

    events = [
        event("user_annotation", "scheduler.run_batch", 0, 90_000),
        event("user_annotation", "spec_prefill.draft", 1_000, 30_000),
        event("user_annotation", "step[DRAFT bs=1 toks=8]", 2_000, 20_000),
        event("cpu_op", "aten::linear", 3_000, 10_000),
        event("cpu_op", "aten::addmm", 4_000, 8_000),
        event("user_annotation", "step[EXTEND bs=1 toks=8]", 40_000, 30_000),
        event("cpu_op", "aten::linear", 41_000, 25_000),
        event("cpu_op", "aten::copy_", 80_000, 1_000),
        {"ph": "M", "name": "process_name"},
    ]
    assert profile.own_ms(events) == {
        ("draft", "(between operators)"): 20,
        ("draft", "aten::linear"): 2,
        ("draft", "aten::addmm"): 8,
        ("target", "(between operators)"): 5,
        ("target", "aten::linear"): 25,
        ("rest", "aten::copy_"): 1,
    }
    kernel = {**event("kernel", "gemm", 5_000, 2_000), "tid": 7}  # then the accelerator's time is what counts
    assert profile.own_ms([*events, {**kernel, "cat": "gpu_user_annotation", "name": "spec_prefill.score"}, kernel]) == {
        ("score", "gemm"): 2,
        ("score", "(between operators)"): 0,
    }


def test_a_profile_names_the_largest_and_sums_up_the_others(tmp_path):
    own = [{"stage": "draft", "operator": "a", "ms": 6.0}, {"stage": "target", "operator": "b", "ms": 3.0}]
    rows = [{"own": [*own, {"stage": "draft", "operator": "c", "ms": 1.0}]}, {"own": own[:1]}]
    assert profile.table(rows, most=1).splitlines()[2:] == [
        "| draft | `a` | 6.0 | 75.0 % |",
        "|  | all others | 2.0 | 25.0 % |",
    ]
    profile.plot(rows, tmp_path / "profile.png", most=1)
    assert (tmp_path / "profile.png").stat().st_size > 0


def test_stages_are_compared_within_a_round_and_prompts_with_dense_ones():
    ms = {(1.0, "one stage"): 800.0, (1.0, "two stages"): 400.0, (0.1, "one stage"): 100.0, (0.1, "two stages"): 80.0}
    rows = [
        {"method": name, "length": 4096, "keep_ratio": keep_ratio, "number": number, "ttft_ms": took * (1 + number)}
        | {"chunks": [512] * 8 if keep_ratio == 1 else [410], "settings": {"chunked_prefill_size": 512}}
        for number in range(3)
        for (keep_ratio, name), took in ms.items()
    ]
    lines = [line.strip("| ").split(" | ") for line in pipeline.table(rows).splitlines()[2:]]
    assert [line[:3] for line in lines] == [
        ["4096", "dense", "one stage"],
        ["4096", "dense", "two stages"],
        ["4096", "0.1", "one stage"],
        ["4096", "0.1", "two stages"],
    ]
    assert [line[4:6] for line in lines] == [
        ["1.00 [1.00, 1.00]", "1.00 [1.00, 1.00]"],
        ["2.00 [2.00, 2.00]", "1.00 [1.00, 1.00]"],
        ["1.00 [1.00, 1.00]", "8.00 [8.00, 8.00]"],
        ["1.25 [1.25, 1.25]", "5.00 [5.00, 5.00]"],
    ]
    assert lines[3][6] == "410"
