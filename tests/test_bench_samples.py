"""Benchmarks: samples, visits and the ratios made of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from small_benchmarks import CEILINGS, NORM, SETTINGS, honest, measure, provider
from undivided.benchmarks import layer_norm, rows, runner, suite
from undivided.benchmarks.op import Provider

pytestmark = pytest.mark.usefixtures("little_to_collect")


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


def test_what_moves_the_same_bytes_is_the_ceiling_and_no_peer():
    ours, peer = (rows.Row("op", "case", "forward", name, "1", "ok") for name in ("ours", "peer"))
    ours.ours = True
    times = {"ours": [2.0] * 8, "peer": [3.0] * 8, runner.BYTES: [1.0] * 8}
    runner.fill([ours, peer], times, runner.Job(layer_norm.LAYER_NORM, NORM, "forward", [], CEILINGS, SETTINGS))
    assert (ours.ceiling, ours.of_ceiling, peer.of_ceiling) == ("bytes", 0.5, pytest.approx(1 / 3))
    assert (ours.ratio, peer.ratio) == pytest.approx((1.5, 1.0))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("mode", "written"), [("forward", 1), ("backward", 1), ("forward_backward", 2)])
def test_bytes_alone_writes_what_the_norm_writes(mode, written, residual):
    case = replace(NORM, residual=residual)
    outputs = layer_norm.bytes_alone(case, mode, "cpu")()
    assert len({one.data_ptr() for one in outputs}) == written + (residual and mode != "backward")
    assert all(one.shape == (case.rows, case.columns) for one in outputs)
    (row,) = measure(layer_norm.LAYER_NORM, case, mode, provider("a", honest))
    assert row.ceiling == "bytes" and row.of_ceiling > 0


def test_what_moves_the_bytes_may_break():
    def broken(case, mode, device):
        def run():
            raise RuntimeError("no memory")

        return run

    (row,) = measure(replace(layer_norm.LAYER_NORM, bytes_alone=broken), NORM, "forward", provider("a", honest))
    assert (row.status, row.ceiling) == ("ok", "copy")


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

    order, paces = [], {}

    def note(name):
        import time

        order.append(name)
        time.sleep(2 * SHORTEST_SAMPLE)  # long enough that a sample is one call

    functions = {name: lambda name=name: note(name) for name in "abc"}
    times = interleaved(functions, "cpu", 0.0, rounds=(12, 12))
    assert [len(taken) for taken in times.values()] == [3, 3, 3]  # a round takes longer than all should
    order.clear()
    times = interleaved(functions, "cpu", 1.0, rounds=(12, 12), paces=paces)
    assert [len(taken) for taken in times.values()] == [12, 12, 12]
    assert order[:6] == [*"aabbcc"]  # two calls of each to see how long they take
    samples, at = [], 6
    while at < len(order):  # before each sample calls that warm the caches
        calls = paces[order[at]].warm_up + 1
        assert calls > 2 and order[at : at + calls] == [order[at]] * calls
        samples.append(order[at])
        at += calls
    rounds = ["".join(samples[start : start + 3]) for start in range(0, len(samples), 3)]
    assert len(rounds) == 12 and {"".join(sorted(one)) for one in rounds} == {"abc"} and len(set(rounds)) >= 4
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


def test_a_quick_run_comes_to_every_case_again_at_its_end(monkeypatch):
    order, done = [], []
    settings = runner.Settings(0.003, quick=True, compiles=False, visits=3)
    monkeypatch.setattr(runner, "SURE", math.inf)
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


def test_a_case_whose_ratio_is_in_doubt_is_visited_again(monkeypatch):
    def times(*ratios):
        return {"a": [1.0] * len(ratios), "peer": list(ratios)}

    jobs = [provider("a", honest, "cpu"), provider("peer", honest)]
    found = runner.Measurement(runner.Job(layer_norm.LAYER_NORM, NORM, "forward", jobs, CEILINGS, runner.Settings()))
    assert found.doubt() == 0.0  # nothing to doubt before a visit
    found.visits = 4
    for expected, taken in ((0.0, times(2, 2, 2, 2, 9)), (math.log(4) / 2, times(1, 2, 3, 8, 9))):
        found.times = taken
        for row, median in zip(found.rows, (1.0, 2.0), strict=True):
            row.median = median
        assert found.doubt() == pytest.approx(expected)
    texts = []
    doubts = {"forward": 1.0, "backward": 0.0}
    monkeypatch.setattr(runner.Measurement, "doubt", lambda self: doubts[self.job.mode])
    settings = runner.Settings(0.002, quick=True, compiles=False, visits=3)
    suite.run([layer_norm.RMS_NORM], "cpu", ["cpu"], settings, lambda text, *_: texts.append(text), only=["1x8"])
    visits = {mode: len([text for text in texts if f"{mode}, visit" in text]) for mode in doubts}
    assert visits == {"forward": 4, "backward": 2}


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


def test_ratio_where_the_slow_have_samples_of_the_first_rounds_alone():
    assert runner.paired_ratio([2.0, 2.0, 2.0, 9.0, 9.0], [1.0, 1.0, 1.0]) == 2.0
