"""Bodies that hold very much, and requests of very many inputs."""

import httpx

from tests.interop.case import Asker, case, error_of

MIB_4 = 4 * 1024 * 1024 - 1024


def many(one: bytes) -> bytes:
    """A list of as many as a body takes."""
    return b"[" + b",".join([one] * (MIB_4 // (len(one) + 1))) + b"]"


@case
def a_million_parts_are_refused_in_a_sentence(ask: Asker) -> None:
    for one in (b"{}", b'{"type":"text","text":""}'):
        body = b'{"messages":[{"role":"user","content":' + many(one) + b"}]}"
        assert "the body holds more than" in error_of(ask.post("/v1/chat/completions", body), 400)["message"]
    body = b'{"inputs":' + many(b'[{"role":"user","content":"x"}]') + b"}"
    assert "the body holds more than" in error_of(ask.post("/predict", body), 400)["message"]


@case
def two_million_token_ids_are_refused_for_their_number(ask: Asker) -> None:
    for path, field in (("/v1/completions", b"prompt"), ("/v1/embeddings", b"input")):
        error = error_of(ask.post(path, b'{"' + field + b'":' + many(b"7") + b"}"), 400)
        assert (error["param"], error["code"]) == (field.decode(), "context_length_exceeded")


@case
def more_inputs_than_the_queue_takes_are_embedded_in_order(ask: Asker) -> None:
    inputs = [[place % 7 + 1000] for place in range(300)]
    answer = ask.post("/v1/embeddings", {"input": inputs, "encoding_format": "base64"})
    assert answer.status_code == httpx.codes.OK, answer.text
    vectors = [one["embedding"] for one in answer.json()["data"]]
    assert len(vectors) == len(inputs)
    assert len(set(vectors[:7])) == 7
    assert answer.json()["usage"]["prompt_tokens"] == len(inputs)
    error = ask.error("/v1/embeddings", {"input": [[5]] * 2049}, 400)
    assert error["param"] == "input"
