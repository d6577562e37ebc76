"""Defaults of a request, and what ends its answer: from the model's files and its tokenizer."""

from collections.abc import Mapping
from dataclasses import dataclass

from serving.config import ModelConfig
from serving.gateway.tokenizer import Tokenizer
from serving.generation_config import end_tokens, sampling_defaults
from serving.messages import TokenId


@dataclass(frozen=True, slots=True)
class Defaults:
    """Of one model, as the configuration wants them used."""

    sampling: Mapping[str, float]
    """Fields of `Sampling` by their names, but `max_tokens`."""
    max_tokens: int | None
    """Longest answer of a request that does not say; None: the endpoint knows."""
    ends: frozenset[TokenId]
    """Tokens that end an answer."""
    unnamed_ends: tuple[TokenId, ...]
    """Those of them that the engine, which has no tokenizer, must be told with each request."""


def read_defaults(config: ModelConfig, tokenizer: Tokenizer) -> Defaults:
    """Those of the model in `config.path`. Raises `ModelError` when its files say something that cannot be."""
    values = sampling_defaults(config)
    max_tokens = values.pop("max_tokens", None)
    named = end_tokens(config.path)
    own = set() if tokenizer.end_token is None else {tokenizer.end_token}
    return Defaults(
        sampling=values,
        max_tokens=None if max_tokens is None else int(max_tokens),
        ends=named | own,
        unnamed_ends=tuple(own - named),
    )
