"""Scores of tasks: result files, the commands that they say, the README's table, and the same from Python."""

import csv
import dataclasses
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_files import standing_in, write_all
from undivided import cli
from undivided.cli import build_parser, main
from undivided.commands import claims_page as claims_module
from undivided.commands import compare, finetune, tasks, train
from undivided.commands.claims_page import claims_page
from undivided.commands.result_rows import append_row, newest, read_rows
from undivided.tasks import GROUPS, TASKS
from undivided.training import evaluate, load_model, predict
from undivided.training import train as train_from_python
from undivided.training.claims import CLAIMS
from undivided.training.models import options_of
from undivided.training.recipes import command_of
from undivided.training.settings import Settings

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    out = tmp_path_factory.mktemp("data")
    with standing_in(out, write_all):
        yield out


@pytest.mark.parametrize(
    "words",
    [
        "pos --minutes 10",
        "g2p --recipe full --minutes 60 --seed 3",
        "g2p --model gru-attention --steps 40 --set d_model=64 --set dropout=0.2",
        "sentiment --minutes 5 --lr 0.000123456789 --batch-size 20 --ema 0.99 --set positions=alibi --dtype bfloat16",
        "pos --steps 5 --set positions=none",
        "reviews --minutes 0.5 --patience 3 --warmup 0.2 --lr-decay inverse-sqrt",
    ],
)
def test_the_command_of_a_result_makes_the_same_settings(words):
    def settings(given):
        return train.new_settings(TASKS[given[0]], build_parser("train").parse_args(["train", *given]))

    made = settings([*shlex.split(words), "--device", "cpu"])
    command = command_of(made)
    assert shlex.split(command)[:2] == ["undivided", "train"]
    assert settings([*shlex.split(command)[2:], "--device", "cpu"]) == made
    assert sorted(shlex.split(command)[3:]) == sorted(shlex.split(words)[1:])  # and says nothing that goes without


def test_the_command_of_a_fine_tuning_names_its_start_and_not_where_that_lies(folder, tmp_path):
    one = TASKS["g2p_ady"]
    start = train_from_python("g2p_medium", tmp_path / "medium", steps=1, evaluations=1, options=SMALL, quiet=True)
    given = ["finetune", "g2p_ady", "--from", str(tmp_path / "medium"), "--freeze", "1", "--layer-rate", "0.9"]
    given += ["--set", "dropout=0.4"]
    made = finetune.tuned_settings(one, start, build_parser("finetune").parse_args(given))
    words = "undivided finetune g2p_ady --from runs/medium --steps 500 --freeze 1 --layer-rate 0.9 --set dropout=0.4"
    assert command_of(made) == command_of(Settings.from_dict(json.loads(json.dumps(dataclasses.asdict(made))))) == words
    assert command_of(dataclasses.replace(made, start=str(tmp_path / "medium" / "best.safetensors"))) == command_of(
        made
    )
    assert options_of(start.model)["d_model"] == 16
    given[given.index("--freeze") + 1] = "99"
    with pytest.raises(ValueError, match="freeze=99 leaves nothing to learn; this model has 6 layers"):
        finetune.tuned_settings(one, start, build_parser("finetune").parse_args(given))


SMALL = {"d_model": 16, "d_ff": 16, "nheads": 2}


def test_from_python_a_task_is_trained_scored_and_asked(folder, tmp_path):
    run = tmp_path / "run"
    model = train_from_python("sentiment", run, steps=60, lr=1e-2, evaluations=1, options=SMALL, quiet=True)
    scores = evaluate(model)
    assert scores["accuracy"] > 90 and evaluate(load_model(run), part="dev")["accuracy"] > 90
    assert predict(model, ["a splendid film", "a dull film"]) == [("positive",), ("negative",)]
    with pytest.raises(FileExistsError, match="holds a run; give another folder"):
        train_from_python("sentiment", run, steps=1)
    with pytest.raises(ValueError, match="part='train' is unknown; allowed: test, dev"):
        evaluate(model, part="train")
    with pytest.raises(ValueError, match="recipe 'slow' is unknown for sentiment; allowed: quick"):
        train_from_python("sentiment", tmp_path / "other", recipe="slow")
    with pytest.raises(ValueError, match="no task is called 'poetry'"):
        train_from_python("poetry", tmp_path / "other")


def test_a_scored_run_is_a_whole_row_and_several_are_scored_at_once(folder, tmp_path, capsys):
    runs = [tmp_path / str(seed) for seed in (1, 2)]
    for seed, run in enumerate(runs, start=1):
        train_from_python("digits", run, steps=2, evaluations=1, seed=seed, options=SMALL, quiet=True, device="cpu")
    path = tmp_path / "digits.csv"
    assert main(["evaluate", *map(str, runs), "--csv", str(path), "--device", "cpu"]) == 0
    assert main(["evaluate", str(runs[0]), "--limit", "5", "--csv", str(path), "--device", "cpu"]) == 0
    rows = read_rows(path)
    assert [row["seed"] for row in rows] == ["1", "2", "1"] and rows[2]["part"] == "test, first 5"
    sizes = "--set d_model=16 --set nheads=2 --set d_ff=16"
    assert rows[1]["command"].startswith("undivided train digits --steps 2 ") and "--seed 2" in rows[1]["command"]
    assert sorted(rows[0]["command"].split()[5:]) == sorted(f"--evaluations 1 --seed 1 {sizes}".split())
    assert all(row["weights"] and row["train_threads"] and float(row["train_seconds"]) >= 0 for row in rows)


def a_row(task="pos", **words):
    row = dict(task=task, model="transformer", split="s", part="test", accuracy="90.0", weights="1500000")
    row |= dict(updates="10", train_seconds="300.0", minutes="5.0", seed="0", train_device="cpu", train_threads="2")
    return row | dict(command=f"undivided train {task} --minutes 5") | words


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    for row in rows:
        append_row(path, row)


def test_a_file_that_was_begun_without_a_column_gets_it(tmp_path):
    path, old = tmp_path / "pos.csv", a_row(updates="9", accuracy="80.0")
    del old["command"]
    write_rows(path, [old, a_row(beams="4"), a_row()])
    rows = read_rows(path)
    assert [row["command"] for row in rows] == ["", *[a_row()["command"]] * 2]
    assert [row["beams"] for row in rows] == ["", "4", ""] and [row["updates"] for row in rows] == ["9", "10", "10"]
    assert newest(rows) == [rows[0], rows[2]]  # the second and the third are of one training


def test_the_table_has_the_best_first_and_the_published_rows_beside_it(tmp_path):
    better = a_row(accuracy="94.164", model="gru", updates="11", seed="1", train_threads="", train_device="cuda")
    write_rows(tmp_path / "one" / "pos.csv", [a_row(), better, a_row(part="dev", accuracy="99.0")])
    write_rows(tmp_path / "one" / "layer_norm.csv", [a_row(accuracy="98.0")])
    lines = tasks.scores_table(tmp_path).splitlines()
    assert lines[0] == "On `one`:" and len(lines) == 6
    beside = "; ".join(f"{row.scores['accuracy']:.2f} {row.system}" for row in TASKS["pos"].published[:5])
    assert lines[4] == (
        f"| pos | 94.16 accuracy | {beside} | 5.0 | 1.50 M | cuda | 1 | `undivided train pos --minutes 5` |"
    )
    assert lines[5].startswith("| pos | 90.00 accuracy |  |") and " | 2 | 0 | " in lines[5]
    assert tasks.scores_table(tmp_path / "one") == tasks.NOTHING


def test_of_ten_published_rows_the_best_five_are_shown(tmp_path):
    write_rows(tmp_path / "one" / "g2p.csv", [a_row("g2p", wer="24.9", per="6.1")])
    (line,) = tasks.scores_table(tmp_path).splitlines()[4:]
    assert "| 24.90 WER, 6.10 PER |" in line and line.count(";") == 4 and "20.20 Transformer" in line
    assert "28.56" not in line


def test_a_group_is_averaged_over_all_of_its_tasks_by_the_way_of_training(tmp_path):
    members, rows = GROUPS["g2p_lowres"], []
    for number, name in enumerate(members):
        words = dict(per="1.0", train_seconds="60.0", updates=str(number))
        rows.append(a_row(name, wer=str(30 + number), command=f"undivided finetune {name} --from runs/m", **words))
        rows.append(a_row(name, wer=str(50 + number), command=f"undivided train {name}", **{**words, "seed": "1"}))
    path = tmp_path / "one" / "g2p_lowres.csv"
    write_rows(path, rows[:-1])
    lines = tasks.scores_table(tmp_path).splitlines()[4:]
    assert len(lines) == 1  # from scratch one is missing
    write_rows(path, rows[-1:])
    tuned, scratch = tasks.scores_table(tmp_path).splitlines()[4:]
    assert tuned.startswith("| g2p_lowres, average of 10 | 34.50 WER, 1.00 PER | 25.10 shared task's baseline")
    assert "| 10.0 | 1.50 M | 2 | 0 | `undivided finetune g2p_lowres --from runs/m` |" in tuned
    assert "| 54.50 WER" in scratch and "`undivided train g2p_ady, and so on`" in scratch


def test_readme_agrees_with_the_committed_scores():
    readme = (ROOT / "README.md").read_text()
    table = tasks.scores_table(ROOT / "benchmarks" / "results")
    assert f"<!-- tasks:begin -->\n{table}\n<!-- tasks:end -->" in readme, "run `undivided tasks --into README.md`"


def test_the_page_of_claims_agrees_with_the_committed_files():
    page = (ROOT / "benchmarks" / "claims.md").read_text()
    body = claims_page(ROOT / "benchmarks" / "results")
    assert f"<!-- claims:begin -->\n{body}\n<!-- claims:end -->" in page, (
        "run `undivided tasks --into benchmarks/claims.md`"
    )
    figures = re.findall(r"\]\((\S+\.png)\)", page)
    assert figures and all((ROOT / "benchmarks" / one).is_file() for one in figures)


def test_the_page_of_claims_has_the_claims_and_the_comparisons_of_models(tmp_path):
    header = "variant,layers,lr,updates,first_loss,loss,minutes,seed,threads,torch,date"
    deep = "no norm,24,0.001,9,2.5,,30.0,0,2,2.13,today"
    (tmp_path / "one").mkdir()
    path = tmp_path / "one" / "compare_digits_depth.csv"
    path.write_text(f"{header}\n{deep}\n")
    row = dict.fromkeys((one.name for one in dataclasses.fields(compare.Row)), "1")
    (tmp_path / "one" / "compare_pos.csv").write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
    page = claims_page(tmp_path)
    assert page.index("### digits: ") < page.index("### pos: ") and "![" not in page
    assert "| no norm | 24 | 2.5 | - | not finite | 9 |" in page.splitlines()
    assert "| 1 | 0.00 | 1.0e+00 | 1.0e+00 | 1.0 | 1 | 1.00 1 |" in page.splitlines()
    assert (
        "`undivided compare digits --claim depth --minutes 30`, 2 threads, seed 0, torch 2.13, today: [rows](" in page
    )
    assert "`undivided compare pos`, 1 threads" in page
    path.write_text(f"{header.replace(',loss', '')}\n")
    with pytest.raises(cli.CommandError, match=r"compare_digits_depth.csv has no rows"):
        claims_page(tmp_path)
    path.write_text(header.replace(",loss", "") + "\na,24,0.001,9,2.5,30.0,0,2,2.13,today\n")
    with pytest.raises(cli.CommandError, match=r"compare_digits_depth.csv lacks the columns loss"):
        claims_page(tmp_path)
    assert claims_page(tmp_path / "one") == claims_module.NOTHING


def test_every_committed_score_says_how_it_came_about():
    for name in (*tasks.single_tasks(), *GROUPS):
        for path in (ROOT / "benchmarks" / "results").glob(f"*/{name}.csv"):
            for row in read_rows(path):
                assert row["command"].startswith("undivided ") and row["seed"] and row["weights"], path


def test_the_table_is_written_by_its_command(tmp_path, capsys):
    copy = tmp_path / "README.md"
    copy.write_text("a\n<!-- tasks:begin -->\nold\n<!-- tasks:end -->\nb\n")
    assert main(["tasks", "--into", str(copy)]) == 0
    assert main(["tasks", "--table"]) == 0
    assert copy.read_text() == f"a\n<!-- tasks:begin -->\n{capsys.readouterr().out}<!-- tasks:end -->\nb\n"
    both = "<!-- claims:begin -->\n<!-- claims:end -->\n"
    copy.write_text(both + copy.read_text())
    assert main(["tasks", "--into", str(copy)]) == 0
    body = claims_page(ROOT / "benchmarks" / "results")
    assert copy.read_text().startswith(both.replace("-->\n<", f"-->\n{body}\n<") + "a\n<!-- tasks:begin -->\n")
    copy.write_text("nothing")
    assert main(["tasks", "--into", str(copy)]) == 2
    assert f"{copy} has no marks <!-- tasks:begin -->" in capsys.readouterr().err


def test_tasks_are_listed_by_name(capsys):
    assert main(["tasks"]) == 0
    assert "g2p_lowres" in (printed := capsys.readouterr().out) and "N-to-1" in printed
    assert main(["tasks", "--names"]) == 0
    names = capsys.readouterr().out.split()
    assert set(names) | {one for group in GROUPS.values() for one in group} == set(TASKS)


def test_make_tasks_trains_scores_and_compares_every_task_and_stops_at_a_failure(tmp_path):
    said, names = tmp_path / "said", ["pos", "g2p_medium"]
    script = tmp_path / "undivided"

    def make(failing):
        said.write_text("")
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = tasks ]; then echo {" ".join(names)}; exit; fi\n'
            f'echo "$@" >> {said}\ncase "$*" in "{failing}"*) exit 1;; esac\n'
        )
        script.chmod(0o755)
        command = ["make", "-C", str(ROOT), "tasks", "-o", ".venv/.installed", f"BIN={tmp_path}", "RUNS=r"]
        code = subprocess.run([*command, "OPTIONS=--minutes 1"], capture_output=True).returncode
        return code, said.read_text().splitlines()

    code, lines = make("nothing")
    assert code == 0 and lines[:6] == [
        line
        for one in names
        for line in (
            f"train {one} --out r/{one} --minutes 1",
            f"evaluate r/{one} --csv r/{one}.csv",
            f"compare {one} --out r/compare/{one} --minutes 1",
        )
    ]
    assert lines[6] == "finetune g2p_lowres --from r/g2p_medium --scratch --out r/g2p_lowres"
    assert list(GROUPS) == ["g2p_lowres"]  # another group needs its line
    assert {line.split("--claim ")[1].split()[0] for line in lines[8:]} == set(CLAIMS)
    for line in lines:  # every one of them is a command with these options
        words = line.split()
        assert build_parser(words[0]).parse_args(words).command == words[0]
    code, lines = make("evaluate r/pos")
    assert code != 0 and len(lines) == 2


def test_a_broken_result_file_is_named(tmp_path):
    path = tmp_path / "pos.csv"
    path.write_text("task,model\npos,gru\n")
    with pytest.raises(cli.CommandError, match="has the columns task, model; a result has also split, part, weights"):
        read_rows(path)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(a_row()), list(a_row().values())])
    assert read_rows(path) == [a_row()]


def test_a_row_with_a_cell_too_many_leaves_the_result_file_as_it_is(tmp_path):
    path, row = tmp_path / "pos.csv", a_row()
    append_row(path, row)
    path.write_text(before := path.read_text() + ",".join([*row.values(), "more"]) + "\n")
    with pytest.raises(cli.CommandError, match=rf"pos.csv, line 3: more cells than the {len(row)} columns"):
        append_row(path, row)
    assert path.read_text() == before


def test_a_result_file_is_whole_or_as_it_was_where_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "pos.csv"
    append_row(path, a_row())
    before = path.read_bytes()
    monkeypatch.setattr(csv.DictWriter, "writerows", lambda *given: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        append_row(path, a_row())
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
