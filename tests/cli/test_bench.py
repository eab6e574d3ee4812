"""`augserve bench`: tables, JSON and exit statuses."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from augserve.bench import median as bench
from augserve.bench.median import CASES, SIZES
from tests.cli.conftest import Run, one_line

FAST = ("bench", "median", "--case", "normal", "--phi", "1.5")
SUMMARY = (
    r"%s: (\d+) rows, worst error (\S+) \((\w+), phi (\S+), m (\d+)\), most passes (\d+), rows that miss .*: (\d+)"
)


def make_the_bar_too_high(monkeypatch: pytest.MonkeyPatch) -> None:
    strict = dataclasses.replace(bench.PRECISIONS["float64"], bar=1e-30)
    monkeypatch.setitem(bench.PRECISIONS, "float64", strict)


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> tuple[int, ...]:
    """Leave out the sizes that take their time."""
    kept = SIZES[:-2]
    measured = bench.median_accuracy
    monkeypatch.setattr(bench, "median_accuracy", lambda *given, **options: measured(*given, sizes=kept, **options))
    return kept


def test_the_table_holds_every_row_and_ends_with_a_summary(run: Run, sizes: tuple[int, ...]) -> None:
    done = run(*FAST, "--phi", "inf", "--case", "outlier")
    assert (done.status, done.err) == (0, "")
    title, header, *lines, last = done.out.splitlines()
    assert "float64" in title
    assert header.split() == ["case", "phi", "m", "error", "bar", "passes"]
    rows = [tuple(line.split()[:3]) for line in lines]
    expected = [(case, phi, str(m)) for case in ("normal", "outlier") for m in sizes for phi in ("1.5", "inf")]
    assert rows == expected
    summary = re.fullmatch(SUMMARY % "float64", last)
    assert summary
    assert float(summary[2]) == max(float(line.split()[3]) for line in lines)
    assert int(summary[6]) == max(int(line.split()[5]) for line in lines)
    assert (int(summary[1]), int(summary[7])) == (len(lines), 0)


def test_both_dtypes_make_two_tables(run: Run) -> None:
    done = run(*FAST, "--dtype", "both")
    assert (done.status, done.err) == (0, "")
    for dtype in ("float64", "float32"):
        assert re.search(SUMMARY % dtype, done.out)
    assert re.search(r"normal +1\.5 +4 +\S+ +- ", done.out)  # float32, small: no bar


def test_json_holds_the_rows_and_their_summary(run: Run, sizes: tuple[int, ...]) -> None:
    done = run(*FAST, "--phi", "inf", "--dtype", "both", "--json")
    assert (done.status, done.err) == (0, "")
    answer = json.loads(done.out)
    assert list(answer) == ["float64", "float32"]
    for dtype, table in answer.items():
        assert set(table) == {"rows", "worst_error", "most_passes", "missed"}
        assert [(row["m"], row["phi"]) for row in table["rows"]] == [
            (m, phi) for m in sizes for phi in (1.5, "inf")
        ]
        for row in table["rows"]:
            names = {"dtype", "case", "phi", "m", "error", "passes", "inside", "certified", "bar", "ok"}
            assert set(row) == names
            assert (row["dtype"], row["case"]) == (dtype, "normal")
            assert row["inside"] is row["certified"] is row["ok"] is True
            assert (row["bar"] is None) == (dtype == "float32" and row["m"] < 32)
        assert table["worst_error"] == max(row["error"] for row in table["rows"] if row["bar"] is not None)
        assert table["most_passes"] == max(row["passes"] for row in table["rows"])
        assert table["missed"] == 0


def test_a_seed_draws_other_data(run: Run) -> None:
    first, second, other = (run(*FAST, "--seed", seed).out for seed in (3, 3, 4))
    assert first == second != other


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_missed_bar_is_status_1(run: Run, monkeypatch: pytest.MonkeyPatch, flags: list[str]) -> None:
    make_the_bar_too_high(monkeypatch)
    done = run(*FAST, *flags)
    missed = re.fullmatch(r"(\d) of 5 rows miss the bar", one_line(done, 1).removeprefix("error: ").rstrip())
    assert missed
    if flags:
        table = json.loads(done.out)["float64"]
        assert table["missed"] == sum(not row["ok"] for row in table["rows"]) == int(missed[1])
    else:
        again = done.out.split("rows that miss the bar")[1].splitlines()[1:]  # after the summary, once more
        assert len(again) == int(missed[1])
        assert all(line.startswith("normal") and line.endswith("missed") for line in again)


def test_nan_is_shown_and_status_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = bench.generalized_median

    def broken(*given: object, **options: object) -> object:
        result = measured(*given, **options)
        return result._replace(value=result.value * float("nan"))

    monkeypatch.setattr(bench, "generalized_median", broken)
    done = run(*FAST)
    assert "5 of 5 rows miss the bar" in one_line(done, 1)
    assert "missed, outside the data" in done.out
    assert json.loads(run(*FAST, "--json").out)["float64"]["worst_error"] is None


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--case", "cauchy"], f"unknown case 'cauchy'; choose one of: {', '.join(sorted(CASES))}"),
        (["--dtype", "float16"], "unknown dtype 'float16'; choose one of: both, float32, float64"),
        (["--phi", "0.9"], "phi must lie in [1, inf]"),
        (["--phi", "nan"], "phi must lie in [1, inf]"),
        (["--seed", "-1"], "a seed in"),
    ],
)
def test_a_setting_out_of_range_is_status_2(run: Run, flags: list[str], words: str) -> None:
    done = run("bench", "median", *flags)
    assert words in one_line(done, 2)
    assert done.out == ""


@pytest.mark.parametrize("arguments", [["bench", "nothing"], ["bench", "median", "--phi", "many"]])
def test_wrong_usage_is_status_2_with_a_hint(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    assert "Usage: augserve bench" in done.err


def test_help_lists_every_case_and_an_example(run: Run) -> None:
    done = run("bench", "median", "--help")
    assert (done.status, done.err) == (0, "")
    told = re.sub(r"\s", "", done.out)
    assert ",".join(CASES) + ";" in told
    assert "\n    augserve bench median --case" in done.out


def test_norms_are_timed_as_a_table_and_as_json(run: Run) -> None:
    flags = ["bench", "norms", "--shape", "8x4x5x5", "--rounds", 1]
    table = run(*flags)
    assert table.status == 0
    assert table.out.splitlines()[1].startswith("8x4x5x5          torch ")
    rows = json.loads(run(*flags, "--json").out)
    assert [row["norm"] for row in rows][:2] == ["torch", "batch"]
    assert rows[0]["shape"] == [8, 4, 5, 5]
    wrong = run("bench", "norms", "--shape", "8xfour")
    assert (wrong.status, wrong.out) == (2, "")
    assert "expected a shape such as 128x16x32x32; got '8xfour'" in wrong.err


def test_networks_are_timed_as_a_table_and_as_json(run: Run) -> None:
    flags = ["bench", "networks", "--batch", 2, "--rounds", 1]
    table = run(*flags)
    assert (table.status, table.err) == (0, "")
    header, first, *_ = table.out.splitlines()
    assert header.split() == ["norm", "work", "time", "images/s", "ratio"]
    assert first.startswith("batch-torch   train ")
    rows = json.loads(run(*flags, "--json").out)
    assert len(rows) == len(table.out.splitlines()) - 1
    assert [row["work"] for row in rows if row["norm"] == "aug"] == ["train", "tracked", "batch", "groups"]
    assert set(rows[0]) == {"norm", "work", "ms", "images_per_second", "ratio"}
    wrong = run("bench", "networks", "--model", "resnet21")
    assert (wrong.status, wrong.out) == (2, "")
    assert "unknown model 'resnet21'; choose one of: densenet121" in wrong.err
