"""Results of benchmarks: files that read back, comparison, and the README's section."""

from __future__ import annotations

from pathlib import Path

import pytest

from undivided import cli
from undivided.benchmarks import compare, readme, rows
from undivided.benchmarks.machine import processor_name


def a_row(provider="ours", median=1.0, spread=0.01, **words):
    values = dict(case="c", mode="forward", version="1", status="ok", ours=provider == "ours", device="d", threads=2)
    row = rows.Row("layer_norm", provider=provider, **(values | words))
    row.median, row.p20, row.p80, row.ratio = median, median * (1 - spread), median * (1 + spread), 2.0 / median
    return row


def test_csv_reads_back(tmp_path):
    written = [
        a_row(),
        a_row("peer", error=1e-7, budget=2e-7),
        rows.Row("attention", "all", "all", "x", "", "absent: y, z"),
    ]
    rows.write_csv(written, tmp_path / "new" / "a.csv")
    found = rows.read_csv(tmp_path / "new" / "a.csv")
    assert [row.key for row in found] == [row.key for row in written]
    assert [row.status for row in found] == ["ok", "ok", "absent: y, z"]
    assert found[1].error == 1e-7 and found[0].ours is True and found[1].ours is False and found[0].threads == 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a,b\n1,2\n", "is no benchmark result: missing columns op, case"),
        ("", "is no benchmark result: missing columns op"),
        ("HEADER\nlayer_norm,c\n", "line 2: .* values are needed"),
        ("HEADER\nBAD\n", "line 2: median is 'fast', a value of type float is needed"),
    ],
)
def test_malformed_csv_is_named_with_its_line(tmp_path, text, complaint):
    rows.write_csv([a_row()], tmp_path / "a.csv")
    header, good = (tmp_path / "a.csv").read_text().splitlines()
    values = good.split(",")
    values[header.split(",").index("median")] = "fast"
    (tmp_path / "a.csv").write_text(text.replace("HEADER", header).replace("BAD", ",".join(values)))
    with pytest.raises(rows.Malformed, match=complaint):
        rows.read_csv(tmp_path / "a.csv")


def test_compare_marks_only_changes_beyond_the_noise():
    names = ("peer", "other", "third")
    old = [a_row(name, case=case) for case in "abcde" for name in ("ours", *names)]
    # the machine was 10 % slower, in case e twice as slow, and peers differ by 3 % beside one another
    machine = dict.fromkeys("abcd", 1.1) | {"e": 2.0}
    ours = {"a": 1.3, "b": 1.02, "c": 0.7, "d": 1.3, "e": 1.0}
    new = [
        a_row(name, case=c, median=machine[c] * k)
        for c in "abcde"
        for name, k in zip(names, (0.97, 1, 1.03), strict=True)
    ]
    new += [a_row(case=case, median=machine[case] * factor) for case, factor in ours.items()]
    wide = next(row for row in new if row.ours and row.case == "d")
    wide.p20 = 1.0  # a range that reaches into the old one, the machine's 10 % taken off
    found = compare.compare(old, new)
    assert found.unmoved == 15 and found.drift == pytest.approx(1.1, rel=0.04)
    assert 1.03 < found.noise < 1.06
    assert {one.new.case: one.verdict for one in found.changes if one.new.ours} == {
        "a": "slower",
        "b": "",
        "c": "faster",
        "d": "",
        "e": "",
    }
    assert not any(one.verdict for one in found.changes if not one.new.ours)
    one = next(one for one in found.changes if one.new.ours and one.new.case == "a")
    assert (one.factor, one.beside) == (pytest.approx(1.43), pytest.approx(1.3))


def test_compare_with_one_peer_a_case_takes_the_noise_from_all_of_them():
    old = [a_row(name, case=case) for case in "abcd" for name in ("ours", "peer")]
    new = [a_row("peer", case=case, median=median) for case, median in zip("abcd", (0.9, 1.0, 1.0, 1.2), strict=True)]
    new += [a_row(case=case, median=1.3 if case == "a" else 1.15) for case in "abcd"]
    found = compare.compare(old, new)
    assert found.noise == pytest.approx(1.2)
    assert [one.verdict for one in found.changes if one.new.ours] == ["slower", "", "", ""]


def test_compare_says_what_differs_between_the_runs():
    found = compare.compare([a_row(), a_row(case="gone")], [a_row(device="o"), a_row(case="here", device="o")])
    assert found.warnings == ("the device differs: d and o",)
    assert (found.only_old, found.only_new, found.unmoved, found.noise, found.drift) == (1, 1, 0, 1.0, 1.0)


def test_readme_agrees_with_the_committed_results():
    root = Path(__file__).parent.parent
    text = (root / "README.md").read_text(encoding="utf-8")
    assert text == readme.replaced(text, readme.section(root / "benchmarks" / "results")), (
        "run `undivided bench readme`"
    )


def test_readme_section_is_written_between_its_comments(tmp_path):
    results, page = tmp_path / "results", tmp_path / "README.md"
    page.write_text("# title\n\ntext\n")
    results.mkdir()
    assert readme.update(page, results)
    assert readme.NOTHING in page.read_text() and page.read_text().startswith("# title\n\ntext\n\n## Performance\n")
    block = [a_row(group="float32", case="c"), a_row("peer", median=2.0, group="float32", case="c")]
    block += [a_row(group="float32", case="d", median=0.25), a_row("peer", median=2.0, group="float32", case="d")]
    rows.write_csv(block, results / "d" / "layer_norm.csv")
    (results / "d" / "another.csv").write_text("not,ours\n")
    page.write_text(page.read_text() + "\nafter\n")
    assert readme.update(page, results) and not readme.update(page, results)
    text = page.read_text()
    assert readme.NOTHING not in text and text.endswith("\nafter\n")
    # ratios 2 / 1 and 2 / 0.25 as the rows have them: geometric mean 4, lowest 2
    assert "| layer_norm | float32 | 4.00 (2.00) |  |  |" in text and "than the best of the peers (peer)" in text


def test_another_way_to_use_it_has_a_line_of_its_own():
    from undivided.benchmarks.summary import summaries

    names = ("undivided auto", "undivided packed", "torch")
    block = [
        a_row(name, median=median, group="float32", ours=name != "torch")
        for name, median in zip(names, (1.0, 0.5, 2.0), strict=True)
    ]
    assert list(summaries(block)) == [
        ("layer_norm", "float32", "2.00", "", ""),
        ("layer_norm", "float32, packed", "4.00", "", ""),
    ]


def test_readme_leaves_out_results_that_git_does_not_have(tmp_path):
    import subprocess

    def git(*words):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True)

    block = [a_row(group="float32"), a_row("peer", median=2.0, group="float32")]
    rows.write_csv(block, tmp_path / "d" / "layer_norm.csv")
    assert "layer_norm" in readme.section(tmp_path)
    git("init")
    assert readme.section(tmp_path) == readme.NOTHING
    assert readme.left_out(tmp_path) == [tmp_path / "d" / "layer_norm.csv"]
    git("add", "d/layer_norm.csv")
    assert "layer_norm" in readme.section(tmp_path) and readme.left_out(tmp_path) == []


@pytest.mark.parametrize(
    "text", [readme.BEGIN, readme.END, f"{readme.END}\n{readme.BEGIN}", readme.BEGIN * 2 + readme.END]
)
def test_readme_with_broken_comments_is_refused(text):
    with pytest.raises(ValueError, match="README"):
        readme.replaced(text, "body")


def test_compare_refuses_files_without_a_common_row(tmp_path, capsys):
    rows.write_csv([a_row()], tmp_path / "a.csv")
    rows.write_csv([a_row(case="other")], tmp_path / "b.csv")
    assert cli.main(["bench", "compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 2
    assert "have no timed row in common" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("vendor", "family", "model", "name", "expected"),
    [
        ("AuthenticAMD", 25, 17, "AMD EPYC", "AMD EPYC (Zen 4)"),
        ("AuthenticAMD", 26, 2, "AMD EPYC", "AMD EPYC (Zen 5)"),
        ("GenuineIntel", 6, 207, "Intel(R) Xeon(R) Processor", "Intel(R) Xeon(R) Processor (Emerald Rapids)"),
        ("GenuineIntel", 6, 999, "Xeon: new", "Xeon: new (family 6 model 999)"),
    ],
)
def test_a_processor_is_named_with_its_generation(vendor, family, model, name, expected):
    info = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: {name}\n"
    assert processor_name(info + "\n" + info.replace(name, "another")) == expected


def test_a_processor_without_numbers_keeps_its_name():
    assert processor_name("model name : BogoChip\nfeatures : fp\n") == "BogoChip"
    assert processor_name("processor : 0\nBogoMIPS : 50\n\n") is None
