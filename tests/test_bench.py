"""Benchmarks: the gate, the lines of those that cannot run, samples, counts, lengths, and the command."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

import undivided
from small_benchmarks import CEILINGS, NORM, honest, measure, provider
from undivided import cli
from undivided.benchmarks import attention, counts, layer_norm, lengths, rows, runner, suite
from undivided.benchmarks.op import Absent
from undivided.commands.bench_files import Files

pytestmark = pytest.mark.usefixtures("little_to_collect")


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
