"""The picture of packages is that of the code."""

from devtools.packages import PICTURE, page, reduced


def test_the_picture_is_up_to_date() -> None:
    assert PICTURE.read_text() == page(), "python -m devtools.packages writes it again"


def test_an_arrow_that_a_longer_way_replaces_is_left_out() -> None:
    assert reduced({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": {"b"}, "b": {"c"}, "c": set()}
