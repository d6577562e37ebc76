"""Plain answers, without which no other case means anything."""

import httpx

from tests.interop.case import Asker, case


@case
def a_prompt_is_completed(ask: Asker) -> None:
    answer = ask.completion("The capital of France is")
    assert answer["choices"][0]["text"]
    assert answer["usage"]["completion_tokens"] > 0


@case
def the_server_is_ready(ask: Asker) -> None:
    assert ask.get("/readyz").status_code == httpx.codes.OK
