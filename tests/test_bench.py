"""Benchmarks: the gate, the lines of those that cannot run, samples, counts, lengths, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import undivided
from undivided import cli
from undivided.benchmarks import attention, counts, layer_norm, lengths, rows, runner, suite
from undivided.benchmarks.ceilings import Ceilings
from undivided.benchmarks.op import Absent, Provider
from undivided.commands.bench_files import Files

pytestmark = pytest.mark.usefixtures("little_to_collect")
CEILINGS = Ceilings("cpu", "a test", {2**20: 1e10}, {"float32": 1e11, "bfloat16": 2e11})
SETTINGS = runner.Settings(seconds=0.001, quick=True, compiles=False)
NORM = layer_norm.Case("layer_norm", 16, 32, "float32")


def honest(case, device):
    return layer_norm.eager(case, device)


def measure(op, case, mode, *providers):
    return runner.measure(runner.Job(op, case, mode, providers, CEILINGS, SETTINGS)).rows


def provider(name, make, backend=None):
    return Provider(name, "1", make, backend=backend)


@pytest.mark.parametrize("mode", ["forward", "backward", "forward_backward"])
def test_wrong_provider_is_refused_with_its_error_and_no_time(mode):
    def off(case, device):
        right = layer_norm.eager(case, device)
        return lambda **values: right(**values) * 1.001

    good, bad = measure(layer_norm.LAYER_NORM, NORM, mode, provider("good", honest), provider("bad", off, "cpu"))
    assert good.status == "ok" and good.median > 0 and good.error <= good.budget
    assert bad.status == "wrong" and bad.error > bad.budget
    assert math.isnan(bad.median) and math.isnan(bad.ratio) and bad.repeats == 0
    assert good.ratio == 1.0  # a wrong one is nobody's peer


def test_result_with_nan_is_wrong():
    def broken(case, device):
        return lambda **values: values["x"] * torch.nan

    (row,) = measure(layer_norm.LAYER_NORM, NORM, "forward", provider("nan", broken))
    assert row.status == "wrong" and not row.timed


def test_provider_that_cannot_run_is_a_line_with_the_reason():
    def never(case, device):
        raise NotImplementedError("it has no layer norm")

    def refused(case, device):
        def call(**values):
            return undivided.layer_norm(**values, backend="sdpa")

        return call

    def breaks(case, device):
        return lambda **values: 1 / 0

    found = measure(
        layer_norm.LAYER_NORM,
        NORM,
        "forward",
        provider("never", never),
        provider("refused", refused, "sdpa"),
        provider("broken", breaks),
        provider("good", honest),
    )
    assert [row.provider for row in found if row.timed] == ["good"]
    assert found[0].status == "cannot: it has no layer norm"
    assert found[1].status.startswith("cannot: backend='sdpa' does not run this call")
    assert found[2].status == "failed: ZeroDivisionError: division by zero"


def test_absent_provider_is_one_line_for_all_cases():
    absent = [Absent("somebody", "not installed (No module named 'somebody')")]
    (row,) = runner.absent_rows(layer_norm.LAYER_NORM, absent, CEILINGS)
    assert (row.case, row.status) == ("all", "absent: not installed (No module named 'somebody')")
    assert measure(layer_norm.LAYER_NORM, NORM, "forward", *absent) == []


def test_ratio_is_over_the_best_peer():
    ours, slow, fast = (rows.Row("op", "case", "forward", name, "1", "ok") for name in ("ours", "slow", "fast"))
    ours.ours = True
    times = {"ours": [1.0] * 8, "slow": [4.0] * 8, "fast": [3.0] * 6 + [9.0] * 2}
    op = replace(layer_norm.LAYER_NORM, work=lambda case, mode: runner_work(8e9, 4e9))
    runner.fill([ours, slow, fast], times, runner.Job(op, NORM, "forward", [], CEILINGS, SETTINGS))
    assert (ours.ratio, slow.ratio, fast.ratio) == pytest.approx((3.0, 0.75, 1.0))
    assert (fast.p20, fast.p80, fast.noisy, slow.noisy) == (3.0, 9.0, True, False)
    # 4e9 bytes at 1e10 a second take 0.4 s, 8e9 operations at 1e11 take 0.08 s
    assert (ours.ceiling, ours.of_ceiling) == ("copy", pytest.approx(0.4))


def test_a_slow_moment_that_hits_both_moves_no_ratio():
    assert runner.paired_ratio([2.0, 2.0, 8.0, 8.0], [1.0, 1.0, 4.0, 4.0]) == pytest.approx(2.0)
    # of the medians it would be 8
    assert runner.paired_ratio([2.0, 2.0, 8.0, 8.0, 8.0], [1.0, 1.0, 1.0, 4.0, 4.0]) == pytest.approx(2.0)


def test_one_round_in_four_moves_no_ratio():
    assert runner.paired_ratio([2.0, 0.1, 2.0, 2.0], [1.0] * 4) == pytest.approx(2.0)
    assert runner.paired_ratio([3.0], [2.0]) == pytest.approx(1.5)


def runner_work(operations, moved):
    from undivided.benchmarks.op import Work

    return Work(operations, moved)


def test_samples_are_interleaved_and_each_round_has_its_own_order():
    from undivided.benchmarks.clock import SHORTEST_SAMPLE, interleaved

    order = []

    def note(name):
        import time

        order.append(name)
        time.sleep(2 * SHORTEST_SAMPLE)  # long enough that a sample is one call

    functions = {name: lambda name=name: note(name) for name in "abc"}
    times = interleaved(functions, "cpu", 0.0, rounds=(12, 12))
    assert [len(taken) for taken in times.values()] == [3, 3, 3]  # a round takes longer than all should
    times = interleaved(functions, "cpu", 1.0, rounds=(12, 12))
    assert [len(taken) for taken in times.values()] == [12, 12, 12]
    # two calls of each to see how long they take, then the rounds; a call before each sample warms the caches
    order = order[-(6 + 12 * 6) :]
    assert order[:6] == [*"aabbcc"]
    rounds = ["".join(order[start : start + 6]) for start in range(6, len(order), 6)]
    assert {"".join(sorted(one)) for one in rounds} == {"aabbcc"} and len(set(rounds)) >= 4
    assert all(one[::2] == one[1::2] for one in rounds)
    assert all(sample >= 2 * SHORTEST_SAMPLE for taken in times.values() for sample in taken)


def test_every_visit_adds_samples_of_inputs_of_its_own():
    seen, built = set(), []

    def make(case, device):
        built.append(case)
        seen_now = honest(case, device)

        def function(**values):
            seen.add(values["x"].data_ptr())
            return seen_now(**values)

        return function

    settings = runner.Settings(seconds=0.003, quick=True, compiles=True, visits=3)
    jobs = [provider("a", make), Provider("compiles", "1", make, compiles=True)]
    others = [layer_norm.Case("layer_norm", rows, 32, "float32") for rows in (17, 18)]
    found = runner.measure(runner.Job(layer_norm.LAYER_NORM, NORM, "forward", jobs, CEILINGS, settings))
    first = [row.repeats for row in found.rows]
    for other in others:  # the tensors of the last two cases are kept
        layer_norm.inputs(other, "cpu")
    found.visit()
    assert [row.repeats for row in found.rows] > first and len(built) == 3 and len(seen) == 2
    assert all(row.timed for row in found.rows) and {len(taken) for taken in found.times.values()} == {
        found.rows[0].repeats
    }


def test_a_quick_run_comes_to_every_case_again_at_its_end():
    order, done = [], []
    settings = runner.Settings(0.003, quick=True, compiles=False, visits=3)
    outcome = suite.run(
        [layer_norm.LAYER_NORM, layer_norm.RMS_NORM],
        "cpu",
        ["cpu"],
        settings,
        progress=lambda text, *_: order.append(text.removesuffix(", visit 2").removesuffix(", visit 3")),
        finished=lambda op, rows: done.append((op.name, len(order))),
        only=["1x8"],
    )
    cases = [
        f"{op}: 1x8 call overhead float32, {mode}"
        for op in ("layer_norm", "rms_norm")
        for mode in ("forward", "backward")
    ]
    assert order == cases * 3 + ["ceilings again"]
    assert done == [("layer_norm", 12), ("rms_norm", 12)]  # once each, with the samples of all visits
    assert all(row.timed for rows in outcome.rows.values() for row in rows if row.ours)


def test_who_takes_long_is_visited_less_often_and_nobody_past_the_end(monkeypatch):
    settings = runner.Settings(seconds=1.0, quick=True, visits=24)
    found = runner.Measurement(runner.Job(layer_norm.LAYER_NORM, NORM, "forward", [], CEILINGS, settings))
    for shortest, count in ((0.001, 24), (0.0625, 16), (10.0, runner.FEWEST_VISITS)):
        found.shortest = shortest
        due = [visit for visit in range(1, 25) if found.due(visit)]
        gaps = {b - a for a, b in zip(due, due[1:], strict=False)}
        assert len(due) == count and due[-1] == 24 and max(gaps) - min(gaps) <= 1
    times, texts = iter(range(1000)), []
    monkeypatch.setattr(suite.time, "monotonic", lambda: float(next(times)))
    limited = runner.Settings(0.001, quick=True, compiles=False, visits=100, longest=30.0)
    suite.run([layer_norm.RMS_NORM], "cpu", ["cpu"], limited, lambda text, *_: texts.append(text), only=["1x8"])
    assert 10 < len([text for text in texts if "visit" in text]) < 30  # the clock of this test ticks at every look


def test_who_breaks_in_a_later_visit_has_no_time():
    def make(case, device):
        calls.append(0)
        if len(calls) > 1:
            return lambda **values: 1 / 0
        return honest(case, device)

    calls = []
    settings = runner.Settings(seconds=0.002, quick=True, compiles=False, visits=2)
    pair = [provider("bad", make), provider("good", honest, "cpu")]
    found = runner.measure(runner.Job(layer_norm.LAYER_NORM, NORM, "forward", pair, CEILINGS, settings))
    assert found.rows[1].ratio > 0
    found.visit()
    bad, good = found.rows
    assert bad.status.startswith("failed: ZeroDivisionError") and not bad.timed and math.isnan(bad.ratio)
    assert good.timed and math.isnan(good.ratio)  # nobody is left to compare it with


def test_counts_by_hand():
    # 2 sequences, 3 heads: q k^T and p v are each 5 x 7 x 11 multiply-adds
    assert counts.attention_operations(2, 3, 5, 7, 11, False, "forward") == 2 * 3 * 2 * (2 * 5 * 7 * 11)
    assert counts.attention_operations(2, 3, 5, 7, 11, True, "backward") == 2 * 3 * (2 * 5 * 7 * 11) * 2.5
    assert counts.attention_operations(1, 1, 4, 4, 8, False, "forward_backward") == 3.5 * 4 * 4 * 4 * 8
    # q and out: 2 * 6 * 5 * 11, k and v: 2 * 3 * 7 * 11 numbers for each of 2 sequences, 2 bytes each
    assert counts.attention_bytes(2, 6, 3, 5, 7, 11, 2, "forward") == 2 * (2 * 6 * 5 * 11 + 2 * 3 * 7 * 11) * 2
    assert counts.norm_bytes(10, 20, 4, False, "forward") == 10 * 20 * 4 * 2
    assert counts.norm_bytes(10, 20, 2, False, "backward") == 10 * 20 * 2 * 3
    assert counts.norm_bytes(10, 20, 2, True, "forward_backward") == 10 * 20 * 2 * 8
    assert counts.feed_forward_operations(3, 5, 7, False, "forward") == 2 * (2 * 3 * 5 * 7)
    assert counts.feed_forward_operations(3, 5, 7, True, "forward_backward") == 9 * (2 * 3 * 5 * 7)


def test_padding_is_no_work():
    case = attention.Case(2, 8, 8, 1, 1, 16, "float32", lengths=(8, 2), source="verses")
    assert attention.work(case, "forward").operations == 4 * 16 * (8 * 8 + 2 * 2)


@pytest.mark.parametrize(
    "words",
    [
        {},
        dict(causal=True),
        dict(bias="relative"),
        dict(bias="alibi"),
        dict(nheads=4, causal=True),
        dict(lengths=(9, 3), source="verses"),
        dict(lengths=(9, 3), source="verses", packed=True),
        dict(seqlen_q=5),
    ],
    ids=str,
)
def test_attention_providers_agree_with_the_reference(words):
    case = attention.Case(
        **(dict(batch=2, seqlen_q=9, seqlen_k=9, nheads=2, nheads_kv=2, head_dim=8) | words), dtype="float32"
    )
    for mode in attention.modes(case):
        found = measure(attention.ATTENTION, case, mode, *attention.providers("cpu", ("auto", "reference")))
        timed = {row.provider for row in found if row.timed}
        assert {"undivided auto", "undivided reference", "torch sdpa"} <= timed, [row.status for row in found]
        assert not [row for row in found if row.status == "wrong" or row.status.startswith("failed")]


def test_lengths_are_spread_over_the_distribution():
    for name, distribution in lengths.STORED.items():
        assert len(distribution.quantiles) == 32 and list(distribution.quantiles) == sorted(distribution.quantiles)
        assert lengths.batch(name, 32) == tuple(reversed(distribution.quantiles))
    assert lengths.batch("reviews", 2) == (
        lengths.STORED["reviews"].quantiles[24],
        lengths.STORED["reviews"].quantiles[8],
    )
    assert lengths.quantiles(list(range(320))) == tuple(range(5, 320, 10))
    with pytest.raises(ValueError, match="no lengths are called 'poems'; allowed: letters, phonemes"):
        lengths.batch("poems", 4)


def tiny(monkeypatch):
    """The suite with one small case of layer norm."""
    op = replace(layer_norm.LAYER_NORM, cases=lambda quick, device: [NORM])
    monkeypatch.setattr(suite, "OPS", {"layer_norm": op})
    monkeypatch.setattr(suite, "measure_ceilings", lambda device: CEILINGS)


def test_command_end_to_end(tmp_path, monkeypatch, capsys):
    tiny(monkeypatch)
    words = ["bench", "layer_norm", "--quick", "--device", "cpu", "--backend", "cpu", "--seconds", "0.001"]
    assert cli.main([*words, "--out", str(tmp_path / "old")]) == 0
    out = capsys.readouterr().out
    assert "16x32 float32, forward" in out and "undivided cpu" in out
    assert f"wrote {tmp_path / 'old' / 'layer_norm.quick.csv'}" in out
    found = rows.read_csv(tmp_path / "old" / "layer_norm.quick.csv")
    assert {row.provider for row in found if row.timed} == {"undivided cpu", "torch eager"}
    assert {row.mode for row in found if row.timed} == {"forward", "backward"}
    assert all(row.ratio > 0 and row.error <= row.budget and row.quick for row in found if row.timed)
    page = (tmp_path / "old" / "report.quick.html").read_text()
    assert "undivided cpu" in page and 'src="data:image/png;base64,' in page and "http" not in page

    assert cli.main([*words, "--out", str(tmp_path / "new"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {row["provider"] for row in printed} >= {"undivided cpu", "torch eager"}
    assert cli.main(["bench", "compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 0
    assert "4 rows:" in capsys.readouterr().out


def test_command_fails_when_a_row_of_ours_is_wrong(tmp_path, monkeypatch, capsys):
    tiny(monkeypatch)
    op = replace(
        suite.OPS["layer_norm"],
        providers=lambda device, backends: [provider("undivided cpu", lambda case, device: torch.sub, "cpu")],
        build=lambda function, case, mode, device: lambda: (torch.zeros(16, 32),),
        modes=lambda case: ("forward",),
    )
    monkeypatch.setattr(suite, "OPS", {"layer_norm": op})
    assert cli.main(["bench", "--quick", "--device", "cpu", "--out", str(tmp_path)]) == 1
    assert "16x32 float32, forward: undivided cpu is wrong" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["fly"], "no benchmark is called 'fly'; allowed: attention, attention_decode, layer_norm"),
        (["layer_norm", "--backend", "fast"], "--backend fast is unknown; allowed: auto, cuda"),
        (["layer_norm", "--seconds", "0"], "--seconds 0.0: a number above 0"),
        (["layer_norm", "--out", "/proc/nowhere"], "results cannot be written to /proc/nowhere"),
        (["cpu", "--device", "cuda"], "`bench cpu` runs on the CPU"),
        (["compare", "one.csv"], "compare takes two files or folders, OLD and NEW; 1 were given"),
        (["compare", "missing.csv", "missing.csv"], "missing.csv is not there"),
        (["readme", "missing"], "missing is no folder"),
    ],
)
def test_bad_input_is_one_line(words, complaint, capsys):
    assert cli.main(["bench", *words]) == 2
    captured = capsys.readouterr()
    assert complaint in captured.err and len(captured.err.splitlines()) == 1


def test_some_of_the_cases_need_a_place_of_their_own(capsys):
    assert cli.main(["bench", "layer_norm", "--quick", "--case", "1x8"]) != 0
    assert "--case '1x8'" in capsys.readouterr().err


def test_cases_are_chosen_by_a_part_of_their_name():
    settings = runner.Settings(0.01, quick=True, compiles=False)
    ops = [layer_norm.LAYER_NORM]
    outcome = suite.run(ops, "cpu", ["reference"], settings, only=["call overhead"])
    assert {row.case for row in outcome.rows["layer_norm"]} - {"all"} == {"1x8 call overhead float32"}
    with pytest.raises(ValueError, match="no case has 'nothing' in its name; there are: .*1x8 call overhead float32"):
        suite.run(ops, "cpu", ["reference"], settings, only=["nothing"])


def test_a_run_that_is_cut_off_leaves_the_cases_that_it_measured(tmp_path):
    files = Files(tmp_path, "device", quick=True)
    op = layer_norm.LAYER_NORM
    whole = [rows.Row(op.name, "old", "forward", "torch", "", "ok")]
    files.save(op, whole)

    def cut_off(text, done, total):
        if done == 1:
            raise KeyboardInterrupt

    settings = runner.Settings(0.01, quick=True, compiles=False)
    with pytest.raises(KeyboardInterrupt):
        suite.run([op], "cpu", ["reference"], settings, progress=cut_off, finished=files.save, measured=files.keep)
    kept = rows.read_csv(tmp_path / "layer_norm.quick.csv.partial")
    assert len({(row.case, row.mode) for row in kept} - {("all", "all")}) == 1
    assert [row.case for row in rows.read_csv(tmp_path / "layer_norm.quick.csv")] == ["old"]
    files.save(op, whole)
    assert not list(tmp_path.glob("*.partial"))


def test_provider_that_breaks_while_it_is_timed_leaves_the_others_their_times():
    def breaks_later(case, device):
        calls = iter(range(3))  # the gate, the memory, and once more

        def call(**values):
            next(calls)
            return layer_norm.eager(case, device)(**values)

        return call

    bad, good = measure(layer_norm.LAYER_NORM, NORM, "forward", provider("bad", breaks_later), provider("good", honest))
    assert bad.status.startswith("failed: StopIteration") and not bad.timed
    assert good.timed and good.ratio == 1.0


def test_cases_for_which_there_is_no_time_are_lines_that_say_so():
    settings = runner.Settings(0.001, quick=True, compiles=False, budget=1e-9)
    outcome = suite.run([layer_norm.LAYER_NORM], "cpu", ["reference"], settings)
    rows = [row for row in outcome.rows["layer_norm"] if row.case != "all"]
    assert {row.status for row in rows} == {"cannot: not begun: 0 seconds of this op were over"}
    assert {row.provider for row in rows} >= {"undivided reference", "torch eager"} and not outcome.failed
    assert any(
        "cases were not begun in the time that was given, from layer_norm: " in text for text in outcome.warnings
    )


def test_gate_alone_has_errors_and_no_times(tmp_path, monkeypatch, capsys):
    tiny(monkeypatch)
    words = ["bench", "layer_norm", "--quick", "--device", "cpu", "--backend", "cpu", "--gate"]
    assert cli.main(words) == 2 and "--gate: rows without times" in capsys.readouterr().err
    assert cli.main([*words, "--out", str(tmp_path)]) == 0
    found = [row for row in rows.read_csv(tmp_path / "layer_norm.quick.csv") if row.status == "ok"]
    assert found and not any(row.timed for row in found) and all(row.error <= row.budget for row in found)


def test_ratio_where_the_slow_have_samples_of_the_first_rounds_alone():
    assert runner.paired_ratio([2.0, 2.0, 2.0, 9.0, 9.0], [1.0, 1.0, 1.0]) == 2.0
