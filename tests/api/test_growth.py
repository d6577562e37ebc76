"""The growth measurement against a fake group, and the picture that it becomes."""

from pathlib import Path

import pytest

from serving.errors import OperatorError
from serving.tools.bench.runner import BenchError
from serving.tools.bench.scaling import Growth, Point, check_picture, draw, run_growth
from tests.api.conftest import Server


async def test_it_measures_a_point_for_each_load(server: Server) -> None:
    growth = await run_growth(server.url, "demo", streams=[1, 3], contexts=[4, 8], queued=5)
    assert [point.x for point in growth.streams] == [1, 3]
    assert [point.x for point in growth.contexts] == [4, 8]
    assert growth.queue
    assert all(point.control_ms == pytest.approx(1.0) for point in growth.streams + growth.contexts)


async def test_requests_that_fail_end_it(server: Server) -> None:
    with pytest.raises(BenchError):
        await run_growth(server.url, "demo", streams=[1], contexts=[100_000], queued=1)


def test_the_picture_is_of_the_kind_that_its_name_says(tmp_path: Path) -> None:
    points = [Point(1, 0.5, 100.0), Point(64, 0.9, 110.0)]
    draw(Growth(points, points, points), tmp_path / "growth.svg")
    assert "<svg" in (tmp_path / "growth.svg").read_text()


def test_a_picture_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    check_picture(tmp_path / "growth.png")
    with pytest.raises(OperatorError, match="svg"):
        check_picture(tmp_path / "growth.doc")
    with pytest.raises(OperatorError, match="not a folder"):
        check_picture(tmp_path / "nowhere" / "growth.svg")
