"""A chat to the one text that the model was trained to go on from, by the template in the model's folder.

The template is a program that somebody else wrote. Hugging Face runs it in Jinja's sandbox, and it may raise whatever a
Python expression can raise. All of that is the caller's error, since another chat may well pass.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from serving.errors import InvalidRequest

_SHOWN_CHARACTERS = 300
"""Of what a template says when it refuses a chat."""
_INTERNALS = re.compile(r"(?<![\w.:/])(?:/[\w.@+~-]+){2,}|\bat 0x[0-9a-fA-F]+")
"""Paths and addresses of this machine, which Python's own messages may hold and no caller needs."""


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], param: str) -> str:
    """The text of a chat, up to where the assistant's answer begins.

    Raises `InvalidRequest`, naming `param`, when the model has no template for it or the template raises anything.
    """
    template = tokenizer.chat_template
    if not template:
        raise InvalidRequest(f"{param}: this model has no chat template; use /v1/completions", param=param)
    if isinstance(template, Mapping) and "default" not in template:
        names = ", ".join(sorted(template))[:_SHOWN_CHARACTERS]
        message = f"this model has chat templates for {names}, but none is its default; use /v1/completions"
        raise InvalidRequest(f"{param}: {message}", param=param)
    try:
        text: str = tokenizer.apply_chat_template(list(messages), add_generation_prompt=True, tokenize=False)
    except Exception as error:
        raise InvalidRequest(f"{param}: the model's chat template refuses it: {_words(error)}", param=param) from error
    return text


def _words(error: Exception) -> str:
    """What a template says, as one line: its author's words as they are, Python's with their kind."""
    from jinja2 import TemplateError

    if isinstance(error, TemplateError):
        said = str(error.message or type(error).__name__)
    else:
        said = f"{type(error).__name__}: {_INTERNALS.sub('...', str(error))}"
    return " ".join(said.split())[:_SHOWN_CHARACTERS].removesuffix(":")
