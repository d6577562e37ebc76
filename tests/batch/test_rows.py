"""Lines to requests, and answers to lines."""

import json
from typing import Any

import pytest

from serving.batch.rows import Call, Row, Task, read_row, row_seed


def call(line: object, number: int = 3) -> Call:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    return read_row(Row(number, data, 0))


def written(call: Call, status: int, answer: dict[str, Any]) -> Any:
    return json.loads(call.result(status, json.dumps(answer).encode()).line)


def test_a_native_row_without_a_seed_gets_one_from_its_number() -> None:
    body = json.loads(call({"inputs": "a", "parameters": {"max_tokens": 2}}).body)
    assert body == {"inputs": "a", "parameters": {"max_tokens": 2, "seed": row_seed(3)}}
    assert row_seed(3) != row_seed(4)


def test_a_line_whose_end_was_not_kept_is_said_to_be_too_long() -> None:
    cut = read_row(Row(3, b'{"inputs": "a', 0, cut=True))
    assert written(cut, 400, json.loads(cut.refused().line))["error"]["message"].endswith("http.max_body_bytes")


@pytest.mark.parametrize("seed", [0, 5, -1])
def test_a_seed_that_is_given_stays(seed: int) -> None:
    assert json.loads(call({"inputs": "a", "parameters": {"seed": seed}}).body)["parameters"] == {"seed": seed}


def test_parameters_of_a_wrong_type_are_left_for_the_application_to_refuse() -> None:
    assert json.loads(call({"inputs": "a", "parameters": [1]}).body)["parameters"] == [1]


def test_a_row_with_a_custom_id_is_in_openais_format() -> None:
    one = call({"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}})
    assert (one.path, one.openai, one.custom_id, one.refusal) == ("/v1/completions", True, "x", None)
    assert json.loads(one.body) == {"prompt": "a", "seed": row_seed(3)}


OPENAI = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": {}}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"inputs": ', "the line is not valid JSON"),
        (b"\xff\xfe", "the line is not valid JSON"),
        ([1], "the line must be a JSON object"),
        ({"inputs": "a", "stream": True}, "stream: a batch does not stream"),
        (OPENAI | {"custom_id": 4}, "custom_id: must be a string"),
        (OPENAI | {"method": "GET"}, "method: must be POST"),
        (OPENAI | {"url": "/metrics"}, "url: must be one of"),
        (OPENAI | {"body": "a"}, "body: must be an object"),
        (OPENAI | {"body": {"stream": True}}, "stream: a batch does not stream"),
        (OPENAI | {"x": 1}, "x: unknown field"),
    ],
)
def test_a_row_that_asks_for_nothing_gets_a_sentence(line: object, complaint: str) -> None:
    one = call(line)
    assert one.refusal is not None
    assert one.refusal.startswith(complaint)
    result = one.refused()
    assert result.failed
    tree = json.loads(result.line)
    error = tree["response"]["body"]["error"] if one.openai else tree["error"]
    assert error["message"] == one.refusal


def test_what_differs_between_runs_is_kept_out_of_a_native_line() -> None:
    usage = {
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    answer = {"outputs": [{"text": "b", "finish_reason": "stop", "usage": usage}], "id": "predict-7", "model": "demo"}
    kept = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert written(call({"inputs": "a"}), 200, answer) == {
        "outputs": [{"text": "b", "finish_reason": "stop", "usage": kept}],
        "model": "demo",
    }


def test_what_differs_between_runs_is_kept_out_of_openais_line() -> None:
    usage = {
        "prompt_tokens": 4,
        "completion_tokens": 2,
        "total_tokens": 6,
        "prompt_tokens_details": {"cached_tokens": 3},
    }
    tree = written(call(OPENAI), 200, {"id": "cmpl-1", "created": 123, "choices": [], "usage": usage})
    assert tree["custom_id"] == "x"
    assert tree["response"]["status_code"] == 200
    kept = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    assert tree["response"]["body"] == {"id": "batch_req_3", "created": 0, "choices": [], "usage": kept}


def test_tokens_are_counted_over_all_outputs_of_a_row() -> None:
    usage = {"prompt_tokens": 4, "completion_tokens": 2}
    result = call({"inputs": ["a", "b"]}).result(200, json.dumps({"outputs": [{"usage": usage}] * 2}).encode())
    assert (result.prompt_tokens, result.completion_tokens, result.failed) == (8, 4, False)


EMBED = Task(embed=True, pooling="last", normalize=True)


def test_a_row_to_embed_asks_for_vectors_as_the_command_says_where_it_does_not_itself() -> None:
    one = read_row(Row(3, b'{"inputs": ["a", "b"], "parameters": {"pooling": "first"}}', 0), EMBED)
    assert one.path == "/v1/embeddings"
    assert json.loads(one.body) == {"input": ["a", "b"], "pooling": "first", "normalize": True}


def test_vectors_come_in_a_native_rows_own_form() -> None:
    one = read_row(Row(3, b'{"inputs": ["a", "b"]}', 0), EMBED)
    usage = {"prompt_tokens": 2, "total_tokens": 2}
    data = [{"object": "embedding", "index": index, "embedding": [index, 0.5]} for index in range(2)]
    result = one.result(200, json.dumps({"object": "list", "data": data, "model": "m", "usage": usage}).encode())
    expected = {"outputs": [{"embedding": [0, 0.5]}, {"embedding": [1, 0.5]}], "usage": usage, "model": "m"}
    assert json.loads(result.line) == expected
    assert (result.prompt_tokens, result.completion_tokens, result.failed) == (2, 0, False)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ({}, "inputs: required"),
        ({"inputs": "a", "stream": False}, "stream: unknown field"),
        ({"inputs": "a", "parameters": [1]}, "parameters: must be an object"),
        ({"inputs": "a", "parameters": {"encoding_format": "base64"}}, "encoding_format: no parameter"),
        ({"inputs": "a", "parameters": {"input": "b"}}, "input: no parameter"),
    ],
)
def test_a_row_to_embed_that_asks_for_nothing_gets_a_sentence(line: object, complaint: str) -> None:
    one = read_row(Row(3, json.dumps(line).encode(), 0), EMBED)
    assert one.refusal is not None
    assert one.refusal.startswith(complaint)


def test_openais_rows_say_themselves_what_they_ask_for_and_vectors_take_no_seed() -> None:
    row = OPENAI | {"url": "/v1/embeddings", "body": {"input": "a"}}
    for task in (Task(), EMBED):
        one = read_row(Row(3, json.dumps(row).encode(), 0), task)
        assert (one.path, json.loads(one.body)) == ("/v1/embeddings", {"input": "a"})
    assert call(OPENAI).path == "/v1/completions"
