"""Fields that clients of other servers send, and what is said of wrong ones."""

from typing import Any

import httpx

from tests.interop.case import Asker, case, error_of

CHAT = [{"role": "user", "content": "Hi"}]
ANSWERED: dict[str, Any] = {
    "role": "assistant",
    "content": "Hello",
    "reasoning_content": None,
    "refusal": None,
    "tool_calls": [],
}
NEUTRAL = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "chat_template_kwargs": None,
    "guided_json": None,
    "structured_outputs": None,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "truncate_prompt_tokens": None,
    "usage": None,
}
HUGE = "9" * 4300
"""The most digits that Python reads."""
PATH = "/v1/chat/completions"


@case
def a_field_of_another_server_is_taken_where_it_asks_for_nothing(ask: Asker) -> None:
    answer = ask.post(PATH, {"messages": [*CHAT, ANSWERED, *CHAT], "max_tokens": 2} | NEUTRAL)
    assert answer.status_code == httpx.codes.OK, answer.text


@case
def it_is_refused_by_name_where_it_asks_for_something(ask: Asker) -> None:
    error = ask.error(PATH, {"messages": CHAT, "skip_special_tokens": False}, 400)
    assert (error["param"], "is not supported" in error["message"]) == ("skip_special_tokens", True)
    error = ask.error(PATH, {"messages": CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}, 400)
    assert error["message"] == "tools: is not supported; leave it out"


@case
def an_unknown_field_is_refused_with_the_nearest_known_one(ask: Asker) -> None:
    error = ask.error(PATH, {"messages": CHAT, "skip_special_token": True}, 400)
    assert "did you mean skip_special_tokens?" in error["message"]


@case
def a_number_of_thousands_of_digits_is_refused_in_a_sentence(ask: Asker) -> None:
    for field in ("max_tokens", "seed"):
        error = error_of(ask.post("/v1/completions", f'{{"prompt":"Hi","{field}":{HUGE}}}'), 400)
        assert error["param"] == field
