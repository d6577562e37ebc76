"""What both kinds of answer share: token counts and log-probabilities in OpenAI's shapes."""

from collections.abc import Sequence

from serving.api.answers import (
    ChatLogprobs,
    ChatTokenLogprob,
    PromptTokensDetails,
    TextLogprobs,
    TopLogprob,
    Usage,
)
from serving.gateway.generation import Choice, Generation, Piece, TokenPiece
from serving.gateway.tokenizer import Tokenizer
from serving.messages import TokenId

_LOWEST = -9999.0
"""Stands for minus infinity, which JSON does not have."""
_PLAIN = frozenset(range(0x20, 0x7F)) - {ord("\\")}
"""Bytes that are shown as they are among escapes."""


def usage(choices: Sequence[Choice], n: int) -> Usage:
    """Token counts of some prompts' choices, `n` a prompt; a prompt counts once."""
    firsts = choices[::n]
    prompt = sum(len(choice.entry.prompt) for choice in firsts)
    completion = sum(choice.completion_tokens for choice in choices)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=sum(choice.entry.cached_tokens for choice in firsts)),
    )


def wants_logprobs(generation: Generation) -> bool:
    """Did the client ask for log-probabilities?"""
    return generation.request.sampling.logprobs >= 0


def text_logprobs(generation: Generation, piece: Piece, tokenizer: Tokenizer) -> TextLogprobs | None:
    """As `/v1/completions` and `/predict` show them; None unless asked for."""
    if not wants_logprobs(generation):
        return None
    top = [_top(token, tokenizer) for token in piece.tokens]
    return TextLogprobs(
        tokens=[_text(token.token, token, tokenizer) for token in piece.tokens],
        token_logprobs=[max(token.logprobs.chosen, _LOWEST) for token in piece.tokens],
        top_logprobs=top if generation.request.sampling.logprobs > 0 else None,
        text_offset=[token.text_offset for token in piece.tokens],
    )


def _top(at: TokenPiece, tokenizer: Tokenizer) -> dict[str, float]:
    """By text; where two tokens look the same, the likelier one counts."""
    shown: dict[str, float] = {}
    for other, value in (*at.logprobs.top, (at.token, at.logprobs.chosen)):
        shown.setdefault(_text(other, at, tokenizer), max(value, _LOWEST))
    return shown


def _text(token: TokenId, at: TokenPiece, tokenizer: Tokenizer, mark: str = "bytes:") -> str:
    """A token as OpenAI shows it: escapes where it is not whole characters, in completions behind a `mark`."""
    raw = tokenizer.token_bytes(token, first=at.first)
    try:
        return tokenizer.special_name(token) or raw.decode()
    except UnicodeDecodeError:
        return mark + "".join(chr(byte) if byte in _PLAIN else f"\\x{byte:02x}" for byte in raw)


def chat_logprobs(generation: Generation, piece: Piece, tokenizer: Tokenizer) -> ChatLogprobs | None:
    """As `/v1/chat/completions` shows them; None unless asked for."""
    if not wants_logprobs(generation):
        return None
    return ChatLogprobs(content=[_chat_token(token, tokenizer) for token in piece.tokens])


def _chat_token(at: TokenPiece, tokenizer: Tokenizer) -> ChatTokenLogprob:
    chosen = _named(at.token, at.logprobs.chosen, at, tokenizer)
    return ChatTokenLogprob(
        token=chosen.token,
        bytes=chosen.bytes,
        logprob=chosen.logprob,
        top_logprobs=[_named(token, value, at, tokenizer) for token, value in at.logprobs.top],
    )


def _named(token: TokenId, logprob: float, at: TokenPiece, tokenizer: Tokenizer) -> TopLogprob:
    return TopLogprob(
        token=_text(token, at, tokenizer, mark=""),
        bytes=list(tokenizer.token_bytes(token, first=at.first)),
        logprob=max(logprob, _LOWEST),
    )
