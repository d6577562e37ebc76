"""Streams, byte by byte."""

import json
from typing import Any

from tests.interop.case import Asker, NotHere, case

LINE_SEPARATOR = {"321": 100, "118": 100}
"""The two tokens that the demo model's vocabulary has for the bytes of U+2028, made all but certain."""
SHORT: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "Hi", "max_tokens": 3},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3},
}


def _events(ask: Asker, path: str, body: dict[str, Any]) -> tuple[str, list[Any]]:
    """The text of a stream as it came, and the values of its events."""
    text = ask.post(path, body | {"stream": True, "temperature": 0}).text
    blocks = [block for block in text.split("\n\n") if block.startswith("data: ")]
    assert blocks[-1] == "data: [DONE]", text[-500:]
    return text, [json.loads(block.removeprefix("data: ")) for block in blocks[:-1]]


@case
def no_line_of_a_stream_ends_where_unicode_ends_one(ask: Asker) -> None:
    ask.require_model("smollm2-135m-instruct")
    body = {"prompt": "A line separator:", "max_tokens": 16, "logit_bias": LINE_SEPARATOR, "ignore_eos": True}
    raw, events = _events(ask, "/v1/completions", body)
    if "\u2028" not in "".join(event["choices"][0]["text"] for event in events):
        raise NotHere("the model did not answer with U+2028")
    assert raw.splitlines() == raw.removesuffix("\n").split("\n")


@case
def a_stream_says_usage_only_if_it_was_asked_for(ask: Asker) -> None:
    for path, short in SHORT.items():
        _, events = _events(ask, path, short)
        assert all("usage" not in event for event in events), events
        _, events = _events(ask, path, short | {"stream_options": {"include_usage": True}})
        assert [event["usage"] for event in events[:-1]] == [None] * (len(events) - 1)
        assert events[-1]["usage"]["completion_tokens"] > 0
