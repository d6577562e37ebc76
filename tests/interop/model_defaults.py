"""Defaults of a request, and what ends an answer: stated by the server, and overruled by a request."""

from tests.interop.case import Asker, case


@case
def status_says_what_stands_in_where_a_request_is_silent(ask: Asker) -> None:
    status = ask.get("/v1/status").json()
    names = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_tokens"}
    assert status["sampling_defaults"].keys() <= names, status
    assert status["end_tokens"], "an answer would have no end"


@case
def what_a_request_says_wins_over_the_models_defaults(ask: Asker) -> None:
    said = {"temperature": 0, "top_p": 1, "top_k": 0, "min_p": 0, "repetition_penalty": 1, "max_tokens": 12}
    texts = {ask.completion("The capital of France is", seed=seed, **said)["choices"][0]["text"] for seed in (1, 2)}
    assert len(texts) == 1


@case
def a_chat_ends_at_the_end_of_its_turn(ask: Asker) -> None:
    ask.require_model("smollm2-135m-instruct")
    body = {"messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 64}
    choice = ask.post("/v1/chat/completions", body | {"temperature": 0}).json()["choices"][0]
    assert choice["finish_reason"] == "stop", choice
    assert "<|" not in choice["message"]["content"]
