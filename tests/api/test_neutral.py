"""Fields of other servers: taken where they ask for nothing, refused by name where they ask for something."""

import re
from typing import Any

import httpx
import pytest

from tests.api.test_errors import CHAT, error

PARTS = [{"type": "text", "text": "x", "cache_control": None}]
ANSWERED: dict[str, Any] = {
    "role": "assistant",
    "content": "x",
    "reasoning_content": None,
    "reasoning": None,
    "refusal": None,
    "annotations": [],
    "tool_calls": [],
    "function_call": None,
    "audio": None,
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
"""A message as other servers send it, sent back to this one."""
SAMPLING: dict[str, Any] = {
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "use_beam_search": False,
    "best_of": 1,
    "length_penalty": 1.0,
    "min_p": 0,
    "repetition_penalty": 1.0,
    "guided_json": None,
    "guided_choice": [],
    "structured_outputs": None,
    "truncate_prompt_tokens": None,
    "prompt_logprobs": None,
    "bad_words": [],
    "allowed_token_ids": None,
    "logits_processors": None,
    "return_tokens_as_token_ids": False,
    "vllm_xargs": {},
    "mirostat": 0,
    "typical_p": 1,
}
CHATTING: dict[str, Any] = {
    "add_generation_prompt": True,
    "continue_final_message": False,
    "add_special_tokens": False,
    "chat_template": None,
    "chat_template_kwargs": {},
    "documents": None,
    "echo": False,
    "tools": [],
    "tool_choice": "auto",
    "functions": [],
    "parallel_tool_calls": True,
    "response_format": {"type": "text"},
    "reasoning_effort": None,
    "mm_processor_kwargs": None,
    "usage": None,
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"inputs": "x", "parameters": {"max_tokens": 1} | SAMPLING}),
        ("/v1/completions", {"prompt": "x", "max_tokens": 1, "echo": False, "add_special_tokens": True} | SAMPLING),
        ("/v1/chat/completions", {"messages": [*CHAT, ANSWERED, *CHAT], "max_tokens": 1} | SAMPLING | CHATTING),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PARTS}], "max_tokens": 1}),
        ("/v1/chat/completions", {"messages": CHAT, "max_tokens": 1} | dict.fromkeys([*SAMPLING, *CHATTING])),
        ("/v1/embeddings", {"input": "x", "dimensions": None, "truncate_prompt_tokens": None, "truncate": False}),
    ],
)
async def test_a_neutral_value_is_taken(client: httpx.AsyncClient, path: str, body: Any) -> None:
    response = await client.post(path, json=body)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"skip_special_tokens": False}, "skip_special_tokens: is not supported; leave it out, or send true"),
        ({"skip_special_tokens": 1}, "skip_special_tokens: is not supported; leave it out, or send true"),
        ({"guided_json": {"type": "object"}}, "guided_json: is not supported; leave it out"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs: is not supported; leave it out"),
        ({"tools": [{"type": "function"}]}, "tools: is not supported; leave it out"),
        ({"best_of": True}, "best_of: is not supported; leave it out, or send 1"),
        ({"length_penalty": 1.5}, "length_penalty: is not supported; leave it out, or send 1"),
        ({"usage": 3}, "usage: must be an object"),
        ({"skip_special_token": True}, "skip_special_token: unknown field; did you mean skip_special_tokens?"),
        ({"messages": [ANSWERED | {"tool_calls": [{}]}]}, "messages.0.tool_calls: is not supported; leave it out"),
        (
            {"messages": [ANSWERED | {"prefix": True}]},
            "messages.0.prefix: is not supported; leave it out, or send false",
        ),
    ],
)
async def test_any_other_value_is_refused_by_name(client: httpx.AsyncClient, extra: Any, told: str) -> None:
    body = {"messages": CHAT, "max_tokens": 1} | extra
    assert error(await client.post("/v1/chat/completions", json=body), 400)["message"] == told


HUGE = 10**4300 - 1
"""Of 4,300 digits, the most that Python reads."""


@pytest.mark.parametrize("field", ["max_tokens", "min_tokens", "max_completion_tokens", "seed", "priority", "n"])
@pytest.mark.parametrize("sign", ["", "-"])
async def test_a_number_of_4300_digits_is_refused_in_a_sentence(
    client: httpx.AsyncClient, field: str, sign: str
) -> None:
    body = f'{{"messages":[{{"role":"user","content":"x"}}],"{field}":{sign}{HUGE}}}'
    told = error(await client.post("/v1/chat/completions", content=body), 400)
    assert told["param"] == field
    assert len(told["message"]) < 100


WRONG: list[Any] = [
    *(
        {name: value}
        for name in ("n", "stop", "logit_bias", "seed", "stream", "temperature")
        for value in (-1e9, "", [5])
    ),
    {"logit_bias": {"x": 1}},
    {"logit_bias": {"1": "x"}},
    {"logit_bias": {"1": 1000}},
    {"logit_bias": {str(token): 1 for token in range(1025)}},
    {"stop": ["a"] * 17},
    {"stop": "a" * 257},
    {"stop_token_ids": [1.5]},
    {"stop_token_ids": [1] * 65},
    {"cache_salt": ""},
    {"cache_salt": "x" * 300},
    {"metadata": {"a": 1}},
    {"metadata": {str(key): "" for key in range(17)}},
    {"modalities": ["audio"]},
    {"stream_options": 5},
    {"stream_options": {"include_obfuscation": True}},
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"messages": [5]},
    {"messages": []},
    {"messages": [{"role": "tool", "content": "x"}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
async def test_what_is_wrong_is_told_to_a_person(client: httpx.AsyncClient, wrong: Any) -> None:
    told = error(await client.post("/v1/chat/completions", json={"messages": CHAT} | wrong), 400)
    sentence = told["message"].removeprefix(told["param"] + ": ")
    assert re.match(r"(its keys |its values )?(must |is not supported)", sentence), sentence
