"""Checked fields to a request that the service takes: prompts tokenized, defaults filled in, the model's own bounds."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast

from serving.api.parse import given, param_error
from serving.api.schema import ChatMessage, EmbeddingRequest, SamplingFields
from serving.config import Config
from serving.errors import DeadlineExceeded, NotFound
from serving.gateway.defaults import Defaults, read_defaults
from serving.gateway.generation import GenerationRequest, Prompt
from serving.gateway.tokenizer import Tokenizer
from serving.logs import request_id
from serving.messages import Pooling, Sampling, TokenId

_SEED_MASK = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Source:
    """A prompt as it was given, and the name of its field."""

    content: str | list[TokenId] | list[ChatMessage]
    param: str


def sources(given: str | Sequence[str] | Sequence[TokenId] | Sequence[list[TokenId]], param: str) -> list[Source]:
    """The prompts of a field that takes one or several, as text or as token ids."""
    if isinstance(given, str):
        return [Source(given, param)]
    if not given or isinstance(given[0], int):
        return [Source(cast("list[TokenId]", given), param)]
    several = cast("list[str | list[TokenId]]", given)
    return [Source(one, f"{param}.{place}") for place, one in enumerate(several)]


@dataclass(frozen=True, slots=True)
class Length:
    """How long an answer may be, in tokens."""

    asked: int | None
    default: int | None
    """Stands in when none is asked for, shortened to what fits; None: all that fits."""
    param: str
    """Name of the field that asks."""


def _new_id(prefix: str) -> str:
    """An id of its own, which every line of the log has from now on."""
    id_ = f"{prefix}-{uuid.uuid4().hex}"
    request_id.set(id_)
    return id_


@asynccontextmanager
async def within(timeout_s: float | None) -> AsyncIterator[None]:
    """Raise `DeadlineExceeded` when what is done here takes longer, as it can where other long texts come first."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise DeadlineExceeded(
            f"timeout_s of {timeout_s:g} s passed while it was waiting", code="queue_timeout"
        ) from None


class Preparer:
    """Knows the model's bounds."""

    def __init__(self, config: Config, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._model = config.model
        self._max_inputs = config.http.max_inputs
        self.defaults = read_defaults(config.model, tokenizer)
        self._max_embeddings = config.http.max_embedding_inputs

    def check_model(self, name: str | None) -> None:
        """Raise `NotFound` unless `name` is the served model or left out."""
        if name is not None and name != self._model.name:
            message = f"no model {name[:200]!r} here; this server has {self._model.name!r}"
            raise NotFound(message, param="model", code="model_not_found")

    async def request(
        self,
        prefix: str,
        sources: Sequence[Source],
        fields: SamplingFields,
        *,
        length: Length,
        logprobs: int,
        stream: bool,
        caller: str,
        at: str = "",
    ) -> GenerationRequest:
        """The request, or `InvalidRequest` naming the field.

        `at` is the path of the sampling fields in the body, with a dot at its end. `logprobs` is -1 for none. `caller`:
        whose API key came with it (see `auth.caller`).
        """
        id_ = _new_id(prefix)
        n = fields.n or 1
        self._check_count(sources, n)
        self._check_ids(fields, at)
        async with within(fields.timeout_s):
            prompts = [await self._prompt(source, length) for source in sources]
        shortest = min(prompt.max_tokens for prompt in prompts)
        if (fields.min_tokens or 0) > shortest:
            raise param_error(f"{at}min_tokens", f"{fields.min_tokens} is over max_tokens, which is {shortest}")
        return GenerationRequest(
            id=id_,
            prompts=prompts,
            sampling=_sampling(fields, logprobs, self.defaults),
            seed=None if fields.seed is None else fields.seed & _SEED_MASK,
            n=n,
            stop=_stops(fields),
            timeout_s=fields.timeout_s,
            priority=fields.priority or 0,
            stream=stream,
            cache_salt=_cache_salt(caller, fields.cache_salt),
        )

    async def _prompt(self, source: Source, length: Length) -> Prompt:
        tokens = await self._tokens(source)
        room = self._room(tokens, source.param)
        return Prompt(tokens, self._max_tokens(len(tokens), room, length))

    async def embedding(self, fields: EmbeddingRequest, *, caller: str) -> GenerationRequest:
        """The request for a vector of each input, or `InvalidRequest` naming the field."""
        id_ = _new_id("embd")
        inputs = sources(fields.input, "input")
        if len(inputs) > self._max_embeddings:
            at_most = f"{len(inputs)} inputs are over this server's limit of {self._max_embeddings}"
            raise param_error("input", at_most)
        async with within(fields.timeout_s):
            prompts = [Prompt(await self._whole(source), max_tokens=1) for source in inputs]
        return GenerationRequest(
            id=id_,
            prompts=prompts,
            sampling=Sampling(seed=0, max_tokens=1),
            seed=0,
            timeout_s=fields.timeout_s,
            priority=fields.priority or 0,
            pooling=Pooling(how=fields.pooling or "mean", normalize=bool(fields.normalize)),
            cache_salt=_cache_salt(caller, fields.cache_salt),
        )

    async def _whole(self, source: Source) -> list[TokenId]:
        """Tokens that may fill the context: no answer follows them."""
        tokens, holds = await self._tokens(source), self._model.max_model_len
        if len(tokens) > holds:
            message = f"the input has {len(tokens)} tokens; this model's context holds {holds}"
            raise param_error(source.param, message, "context_length_exceeded")
        return tokens

    def _check_count(self, sources: Sequence[Source], n: int) -> None:
        if len(sources) * n > self._max_inputs:
            at_most = f"{len(sources)} prompts times n={n} are over this server's limit of {self._max_inputs}"
            raise param_error(sources[0].param.partition(".")[0], at_most)

    async def _tokens(self, source: Source) -> list[TokenId]:
        """Others have their turn before each: there may be thousands."""
        await asyncio.sleep(0)
        content, param = source.content, source.param
        if isinstance(content, str):
            tokens = await self._tokenizer.encode(content, param=param) if content else []
        elif content and isinstance(content[0], ChatMessage):
            tokens = await self._tokenizer.encode_chat(_messages(content, param), param=param)
        else:
            tokens = cast("list[TokenId]", content)
            self._check_vocabulary(tokens[: self._model.max_model_len], param)  # more are refused for their number
        if not tokens:
            raise param_error(param, "must not be empty")
        return tokens

    def _check_vocabulary(self, tokens: Sequence[TokenId], param: str) -> None:
        worst = max(tokens, default=0)
        if worst >= self._tokenizer.vocab_size:
            raise param_error(param, f"token id {worst} is outside of the vocabulary of {self._tokenizer.vocab_size}")

    def _check_ids(self, fields: SamplingFields, at: str) -> None:
        self._check_vocabulary([int(key) for key in fields.logit_bias or {}], f"{at}logit_bias")
        self._check_vocabulary(fields.stop_token_ids or [], f"{at}stop_token_ids")

    def _room(self, tokens: Sequence[TokenId], param: str) -> int:
        room = self._model.max_model_len - len(tokens)
        if room < 1:
            message = f"the prompt has {len(tokens)} tokens; this model's context holds {self._model.max_model_len}"
            raise param_error(param, f"{message} with at least one of the answer", "context_length_exceeded")
        return room

    def _max_tokens(self, prompt: int, room: int, length: Length) -> int:
        if length.asked is None:
            return min(length.default or room, room)
        if length.asked > room:
            name = length.param.rpartition(".")[-1]
            message = (
                f"{prompt} prompt tokens and {name}={length.asked} make {prompt + length.asked}; "
                f"this model's context holds {self._model.max_model_len}"
            )
            raise param_error(length.param, message, "context_length_exceeded")
        return length.asked


def _messages(messages: Sequence[Any], param: str) -> list[dict[str, str]]:
    """Messages as chat templates know them."""
    rendered = []
    for place, message in enumerate(messages):
        if message.content is None and message.role != "assistant":
            raise param_error(f"{param}.{place}.content", "is required")
        role = "system" if message.role == "developer" else message.role
        rendered.append({"role": role, "content": message.text(), **given(name=message.name)})
    return rendered


def _cache_salt(caller: str, asked: str | None) -> str:
    """Callers are kept apart whatever salt they ask for: a name has no line break, so no two pairs are alike."""
    return f"{caller}\n{asked or ''}" if caller else asked or ""


def _stops(fields: SamplingFields) -> tuple[str, ...]:
    if fields.stop is None:
        return ()
    return (fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop)


def _sampling(fields: SamplingFields, logprobs: int, defaults: Defaults) -> Sampling:
    """What the engine needs; seed and max_tokens are set for each sequence later."""
    named = ("min_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty")
    values = dict(defaults.sampling) | given(
        **{name: getattr(fields, name) for name in (*named, "frequency_penalty", "ignore_eos")},
        logit_bias=fields.logit_bias and {int(token): bias for token, bias in fields.logit_bias.items()},
        stop_token_ids=fields.stop_token_ids and tuple(fields.stop_token_ids),
    )
    values["top_k"] = max(0, values.get("top_k", 0))
    if defaults.unnamed_ends and not fields.ignore_eos:
        values["stop_token_ids"] = (*values.get("stop_token_ids", ()), *defaults.unnamed_ends)
    return Sampling(seed=0, max_tokens=1, logprobs=logprobs, **values)
