"""The list of what is thorough."""

from pathlib import Path

from tests.support.tiers import THOROUGH


def test_every_place_that_is_thorough_is_there() -> None:
    """A file that was moved would else become part of `make test`."""
    assert [place for place in THOROUGH if not Path(place).exists()] == []
