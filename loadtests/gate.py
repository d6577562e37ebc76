"""Holds a load test's figures against thresholds: `python -m loadtests.gate loadtests/gate.yaml PREFIX_stats.csv`.

Exit code 0 when all hold, 1 with one sentence for each that does not, 2 when a file cannot be used.
"""

import argparse
import csv
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

Row = dict[str, str]


class Rule(BaseModel):
    """Bounds for the rows whose "TYPE NAME" matches a pattern; the names of figures are the CSV's columns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: str
    at_most: dict[str, float] = {}
    at_least: dict[str, float] = {}
    optional: bool = False
    """Nothing to measure is no breach."""

    def breaches(self, table: list[Row]) -> Iterator[str]:
        """A sentence for each. A pattern without a row is one, unless it is optional: nothing was measured."""
        matching = [row for row in table if fnmatchcase(label(row), self.rows)]
        if not matching and not self.optional:
            yield f"no row {self.rows!r} was measured."
        for row in matching:
            for name, bound in self.at_most.items():
                if (value := figure(row, name)) > bound:
                    yield f"{label(row)}: {name} is {value:g}, more than {bound:g}."
            for name, bound in self.at_least.items():
                if (value := figure(row, name)) < bound:
                    yield f"{label(row)}: {name} is {value:g}, less than {bound:g}."


def label(row: Row) -> str:
    """As rules name a row."""
    return f"{row['Type']} {row['Name']}".strip()


def figure(row: Row, name: str) -> float:
    """A figure of a row. Raises `ValueError` for a column that is not there, or holds no number."""
    if name not in row:
        raise ValueError(f"no column {name!r}; there are {', '.join(row)}")
    return float(row[name])


def breaches(rules: Path, stats: Path) -> list[str]:
    """All of them. Raises `ValueError` or `OSError` for a file that cannot be used."""
    parsed = TypeAdapter(list[Rule]).validate_python(yaml.safe_load(rules.read_text()))
    with stats.open(newline="") as lines:
        table = list(csv.DictReader(lines))
    return [sentence for rule in parsed for sentence in rule.breaches(table)]


def main(arguments: list[str] | None = None) -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rules", type=Path, help="YAML with thresholds")
    parser.add_argument("stats", type=Path, help="Locust's …_stats.csv")
    asked = parser.parse_args(arguments)
    try:
        found = breaches(asked.rules, asked.stats)
    except ValidationError as error:
        first = error.errors()[0]
        print(f"{asked.rules}: {'.'.join(map(str, first['loc']))}: {first['msg']}", file=sys.stderr)
        return 2
    except (OSError, ValueError, yaml.YAMLError) as error:
        print(f"{asked.rules}, {asked.stats}: {error}".replace("\n", " "), file=sys.stderr)
        return 2
    for sentence in found:
        print(sentence)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
