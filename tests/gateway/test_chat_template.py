"""Whatever a model's chat template raises is the caller's error, in its words."""

from typing import Any

import pytest

from serving.config import ModelConfig
from serving.errors import InvalidRequest
from serving.gateway.tokenizer import Tokenizer
from tests.gateway.conftest import MODEL

CHAT = [{"role": "user", "content": "Hi"}]


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    """Of this module, as its template is changed."""
    return Tokenizer(ModelConfig(path=MODEL))


async def refusal(tokenizer: Tokenizer, template: Any) -> str:
    """What a caller is told of a chat that this template does not take."""
    tokenizer._hf.chat_template = template
    with pytest.raises(InvalidRequest) as caught:
        await tokenizer.encode_chat(CHAT, param="messages")
    assert caught.value.param == "messages"
    return str(caught.value)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (
            "{{ raise_exception('roles must alternate user/assistant/user') }}",
            "roles must alternate user/assistant/user",
        ),
        ("{{ raise_exception('two\nlines') }}", "refuses it: two lines"),
        ("{{ raise_exception('') }}", "refuses it: TemplateError"),
        ("{{ 1 + 'a' }}", "TypeError: unsupported operand"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{{ [1].index(2) }}", "ValueError: 2 is not in list"),
        ("{{ {}.popitem() }}", "access to attribute 'popitem' of 'dict' object is unsafe"),
        ("{{ messages[0].missing.more }}", "has no attribute 'missing'"),
        ("{{ range(10 ** 9) }}", "OverflowError: Range too big"),
        ("{{ ''.__class__.__mro__ }}", "__class__"),
        ("{% macro loop() %}{{ loop() }}{% endmacro %}{{ loop() }}", "RecursionError"),
        ("{% include '/etc/passwd' %}", "TypeError: no loader for this environment specified"),
        ("{% for %}", "Expected an expression"),
        ("{{ " + "(" * 500 + "1" + ")" * 500 + " }}", "Error"),
    ],
)
async def test_a_template_that_raises_is_a_refusal_in_its_words(own: Tokenizer, template: str, words: str) -> None:
    said = await refusal(own, template)
    assert said.startswith("messages: the model's chat template refuses it: ")
    assert words in said


async def test_named_templates_without_a_default_are_a_sentence(own: Tokenizer) -> None:
    said = await refusal(own, {"tool_use": "{{ 1 }}", "rag": "{{ 2 }}"})
    assert said == (
        "messages: this model has chat templates for rag, tool_use, but none is its default; use /v1/completions"
    )


async def test_the_default_among_named_templates_is_used(own: Tokenizer) -> None:
    own._hf.chat_template = {"tool_use": "{{ 1 // 0 }}", "default": "chat of {{ messages | length }}"}
    assert own.decode(await own.encode_chat(CHAT, param="messages")) == "chat of 1"


async def test_a_refusal_is_short_and_shows_nothing_of_this_machine(own: Tokenizer) -> None:
    assert len(await refusal(own, "{{ raise_exception('ab ' * 5000) }}")) < 400
    said = await refusal(own, "{{ ['x'].index('see /home/someone/model/file.jinja at 0x7f12ab') }}")
    assert "ValueError" in said
    assert "someone" not in said
    assert "0x7f" not in said
