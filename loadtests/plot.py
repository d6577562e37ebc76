"""Draws a load test over its time: `python -m loadtests.plot PREFIX_stats_history.csv OUT.svg`.

From Locust's `--csv-full-history`, whose percentiles are those of the last ten seconds at each moment.
"""

import argparse
import csv
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Series = dict[str, list[tuple[float, float, float]]]
"""Name of a row -> seconds since the start, and two figures."""
PANELS = {"TTFT": "first token, ms", "inter-token": "between tokens, ms", "total": "whole request, ms"}
PERCENTILES = "50%", "95%"


def history(path: Path) -> list[dict[str, str]]:
    """The file's rows. Raises `ValueError` when it has none with requests."""
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    if not any(row["Name"] != "Aggregated" for row in rows):
        raise ValueError("no requests were made")
    return rows


def series(rows: list[dict[str, str]], kind: str, figures: tuple[str, str]) -> Series:
    """Two figures of every row of a kind over time; moments without a figure are left out."""
    start = min(int(row["Timestamp"]) for row in rows)
    found: Series = defaultdict(list)
    for row in rows:
        first, second = (row[name] for name in figures)
        if row["Type"] == kind and "N/A" not in {first, second}:
            found[row["Name"]].append((int(row["Timestamp"]) - start, float(first), float(second)))
    return found


def draw(rows: list[dict[str, str]], out: Path) -> None:
    """Latencies by row, and how much was asked of the server."""
    import matplotlib as mpl

    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "gangway"  # the same figures make the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6.4), sharex=True, layout="constrained")
    for axis, (kind, title) in zip(axes.flat, PANELS.items(), strict=False):
        _latency(axis, series(rows, kind, PERCENTILES), title)
    _load(axes.flat[3], rows)
    for axis in axes[1]:
        axis.set_xlabel("seconds")
    figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None)
    pyplot.close(figure)


def _latency(axis: Any, lines: Series, title: str) -> None:
    for number, (name, points) in enumerate(sorted(lines.items())):
        answered = [point for point in points if point[1] > 0]  # Locust's percentile of no requests is 0
        if not answered:
            continue
        seconds, median, high = zip(*answered, strict=True)
        axis.plot(seconds, median, color=f"C{number}", label=name)
        axis.plot(seconds, high, color=f"C{number}", linewidth=0.8, linestyle=":")
    axis.set_title(f"{title}: p50, dotted p95", fontsize=10)
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=7, ncols=2)


def _load(axis: Any, rows: list[dict[str, str]]) -> None:
    [users] = series(rows, "", ("User Count", "Failures/s")).values()
    seconds, count, failures = zip(*users, strict=True)
    axis.plot(seconds, count, color="0.5", label="users")
    axis.plot(seconds, failures, color="C3", label="failures/s")
    totals: dict[float, float] = defaultdict(float)
    for points in series(rows, "total", ("Requests/s", "Failures/s")).values():
        for second, requests, _ in points:
            totals[second] += requests
    axis.plot(list(totals), list(totals.values()), color="C0", label="requests/s")
    axis.set_title("load", fontsize=10)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("history", type=Path, help="Locust's …_stats_history.csv")
    parser.add_argument("out", type=Path, help="picture to write, .svg or .png")
    asked = parser.parse_args(arguments)
    try:
        draw(history(asked.history), asked.out)
    except (OSError, ValueError, KeyError) as error:
        print(f"{asked.history}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
