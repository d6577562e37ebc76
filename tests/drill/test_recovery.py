"""A fault's story from samples."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from serving.tools.drill.recovery import (
    NOTE,
    Difference,
    DrillReport,
    Observation,
    Probe,
    Round,
    Sighting,
    Timeline,
    first_difference,
    sum_up,
    timeline,
)

KILLED = Observation(
    injected=100.0,
    generation=3,
    probes=[Probe(99.5, True), Probe(100.5, False), Probe(105.0, False), Probe(108.0, True), Probe(109.0, True)],
    sightings=[
        Sighting(99.5, "ready", 3),
        Sighting(100.2, "ready", 3),
        Sighting(100.4, "restarting", 3),
        Sighting(103.0, "loading", 4),
        Sighting(108.0, "ready", 4),
    ],
    tokens=[99.0, 100.1, 100.6, 108.5, 109.0],
    ended=[112.0, 111.0],
)
"""The token at 100.6 had been sent before the group broke."""


def test_every_moment_counts_from_the_fault() -> None:
    seen = replace(KILLED, tokens=[99.0, 100.1, 108.5])
    assert timeline(seen).values() == pytest.approx([0.4, 0.5, 3.0, 8.0, 8.5, 12.0])


def test_a_token_that_was_on_its_way_is_not_a_resumed_one() -> None:
    late = Sighting(100.7, "restarting", 3)
    seen = replace(KILLED, sightings=[*KILLED.sightings[:3], late, *KILLED.sightings[3:]])
    assert timeline(seen).resumed == pytest.approx(8.5)


def test_a_fault_that_restarts_nothing_has_only_an_end() -> None:
    calm = replace(KILLED, probes=[Probe(101.0, True)], sightings=[Sighting(101.0, "ready", 3)])
    assert timeline(calm) == Timeline(ended=12.0)


def test_a_link_that_was_lost_for_a_while_resumes_in_the_same_generation() -> None:
    sightings = [Sighting(100.4, "connecting", 3), Sighting(109.0, "ready", 3)]
    seen = timeline(replace(KILLED, sightings=sightings, tokens=[100.1, 108.5]))
    assert seen.restarted is None
    assert seen.resumed == pytest.approx(8.5)


def test_a_refused_look_is_a_detection() -> None:
    assert timeline(replace(KILLED, sightings=[Sighting(100.3, None, None)])).detected == pytest.approx(0.3)


def test_readiness_that_comes_and_goes_counts_from_its_last_return() -> None:
    probes = [Probe(101.0, False), Probe(102.0, True), Probe(103.0, False), Probe(104.0, True)]
    assert timeline(replace(KILLED, probes=probes)).ready_again == pytest.approx(4.0)
    assert timeline(replace(KILLED, probes=probes[:3])).ready_again is None


@pytest.mark.parametrize(
    ("text", "place"), [("once upon", None), ("once Upon", 5), ("once", 4), ("once upon a", 9), ("", 0)]
)
def test_texts_differ_from_their_first_unequal_character_on(text: str, place: int | None) -> None:
    assert first_difference("once upon", text) == place


def make_report(*rounds: Round) -> DrillReport:
    return sum_up("kill-rank1", "demo", 24, 200, list(rounds))


def make_round(number: int, resumed: float | None, lost: int = 0, wrong: int = 0) -> Round:
    moments = Timeline(resumed=resumed, ended=10.0)
    differences = [Difference(prompt, 17) for prompt in range(wrong)]
    return Round(number=number, in_flight=24, timeline=moments, lost=["status 503"] * lost, wrong=differences)


def test_median_and_maximum_are_over_the_rounds_that_have_the_moment() -> None:
    report = make_report(make_round(1, 5.0), make_round(2, None), make_round(3, 8.0))
    assert (report.median.resumed, report.maximum.resumed, report.median.detected) == (6.5, 8.0, None)


def test_nothing_lost_nothing_wrong_and_within_the_budget_is_no_verdict() -> None:
    report = make_report(make_round(1, 5.0), make_round(2, 7.0))
    assert report.verdict() is None
    assert report.verdict(6.0) is None


@pytest.mark.parametrize(
    ("one", "told"),
    [
        (make_round(1, 5.0, lost=2), r"requests lost: 2 \(the first: status 503\)"),
        (make_round(1, 5.0, wrong=3), r"texts wrong: 3 \(the first from character 17 on\)"),
        (make_round(1, 6.5), "after 6.50 s"),
        (make_round(1, None), "no token was resumed"),
    ],
)
def test_the_verdict_says_what_went_wrong(one: Round, told: str) -> None:
    verdict = make_report(one).verdict(6.0)
    assert verdict is not None
    assert re.search(told, verdict)


def test_the_table_has_a_row_a_round_then_median_and_maximum_and_a_note_when_texts_differ() -> None:
    calm, wrong = make_report(make_round(1, 5.0), make_round(2, None)), make_report(make_round(1, 5.0, wrong=1))
    rows = [line.split() for line in text_of(calm).splitlines()]
    heads = [row[0] for row in rows if row and row[0] in {"1", "2", "median", "max"}]
    assert heads == ["1", "2", "median", "max"]
    assert "-" in next(row for row in rows if row and row[0] == "2")
    assert NOTE[:20] not in text_of(calm)
    assert NOTE[:20] in text_of(wrong)


def text_of(report: DrillReport) -> str:
    out = io.StringIO()
    Console(file=out, width=300).print(report.table())
    return out.getvalue()
