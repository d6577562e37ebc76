"""Probes, which are answered without a key, and so tell nothing but the state."""

import httpx

from tests.interop.case import Asker, NotHere, case, error_of


@case
def the_probes_show_nothing_but_the_state_and_the_generation(ask: Asker) -> None:
    stranger = Asker(ask.url)
    for path in ("/readyz", "/healthz"):
        answer = stranger.get(path)
        if answer.status_code == httpx.codes.OK:
            assert set(answer.json()) == {"state", "generation"}, answer.text
        else:
            message = error_of(answer, 503)["message"]
            assert message.startswith("the group ")
            assert len(message) < 60, message


@case
def the_status_is_for_those_with_a_key(ask: Asker) -> None:
    if ask.key is None:
        raise NotHere("this server asks for no key")
    error = error_of(Asker(ask.url).get("/v1/status"), 401)
    assert error["code"] == "missing_api_key"
    assert set(ask.get("/v1/status").json()) >= {"state", "first_failure", "ranks"}
