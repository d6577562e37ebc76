import csv
from pathlib import Path

import pytest

from loadtests import gate


@pytest.fixture
def stats(tmp_path: Path) -> Path:
    path = tmp_path / "load_stats.csv"
    columns = "Type", "Name", "Request Count", "Failure Count", "50%", "99%"
    rows = [("TTFT", "chat", 40, 0, 120, 900), ("TTFT", "plain", 10, 0, 80, 200), ("total", "chat", 40, 2, 700, 2000)]
    with path.open("w", newline="") as out:
        csv.writer(out).writerows([columns, *rows])
    return path


def judge(stats: Path, rules: str) -> int:
    path = stats.with_name("gate.yaml")
    path.write_text(rules)
    return gate.main([str(path), str(stats)])


def test_thresholds_that_hold_say_nothing(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(stats, "[{rows: 'TTFT *', at_most: {'99%': 900}, at_least: {Request Count: 10}}]") == 0
    assert not capsys.readouterr().out


def test_each_breach_is_a_sentence(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = "[{rows: '* chat', at_most: {Failure Count: 0, '99%': 1000}}, {rows: 'TTFT plain', at_least: {'50%': 90}}]"
    assert judge(stats, rules) == 1
    assert capsys.readouterr().out.splitlines() == [
        "total chat: Failure Count is 2, more than 0.",
        "total chat: 99% is 2000, more than 1000.",
        "TTFT plain: 50% is 80, less than 90.",
    ]


def test_a_row_that_was_not_measured_is_a_breach(stats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert judge(stats, "[{rows: 'total wrong', at_most: {Failure Count: 0}}]") == 1
    assert capsys.readouterr().out == "no row 'total wrong' was measured.\n"


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("[{rows: 'TTFT *', at_most: {p99: 1}}]", "no column 'p99'"),
        ("[{rows: 'TTFT *', atmost: {'99%': 1}}]", "0.atmost: Extra inputs are not permitted"),
        ("[{", "while parsing"),
    ],
)
def test_rules_that_cannot_be_used_are_wrong_usage(
    stats: Path, capsys: pytest.CaptureFixture[str], rules: str, said: str
) -> None:
    assert judge(stats, rules) == 2
    assert said in capsys.readouterr().err


def test_a_missing_file_is_wrong_usage(tmp_path: Path) -> None:
    assert gate.main([str(tmp_path / "gate.yaml"), str(tmp_path / "load_stats.csv")]) == 2


def test_a_row_that_need_not_be_measured_is_still_held_when_it_is(stats: Path) -> None:
    assert judge(stats, "[{rows: 'TTFT wrong', at_most: {'50%': 1}, optional: true}]") == 0
    assert judge(stats, "[{rows: 'TTFT chat', at_most: {'50%': 1}, optional: true}]") == 1
