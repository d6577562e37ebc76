"""What clients get: every JSON answer as a struct, which both encodes it and describes it in the OpenAPI document."""

from typing import Literal

import msgspec

from serving.gateway.suspects import Culprit
from serving.messages import FinishReason, GroupState, RankInfo


class Answer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A JSON object. None is part of itself, so that Python's collector need not look for circles in thousands."""


class PromptTokensDetails(Answer, frozen=True, kw_only=True):
    """Where the prompt came from."""

    cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""


class Usage(Answer, frozen=True, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class TextLogprobs(Answer, frozen=True, kw_only=True):
    """Log-probabilities, one entry a token."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class CompletionChoice(Answer, frozen=True, kw_only=True):
    """One continuation, or what it gained."""

    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(Answer, frozen=True, kw_only=True):
    """Answer of `/v1/completions`, and each event of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    """In events only if asked for, as null in all but the last one."""


class TopLogprob(Answer, frozen=True, kw_only=True):
    """A token that might have been."""

    token: str
    bytes: list[int]
    logprob: float


class ChatTokenLogprob(Answer, frozen=True, kw_only=True):
    """A token that was chosen, and the likeliest ones."""

    token: str
    bytes: list[int]
    logprob: float
    top_logprobs: list[TopLogprob]


class ChatLogprobs(Answer, frozen=True, kw_only=True):
    """Log-probabilities of a message."""

    content: list[ChatTokenLogprob]
    refusal: None = None


class AssistantMessage(Answer, frozen=True, kw_only=True):
    """The model's turn."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(Answer, frozen=True, kw_only=True):
    """One answer."""

    index: int
    message: AssistantMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatCompletion(Answer, frozen=True, kw_only=True):
    """Answer of `/v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class ChatDelta(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What a message gained."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class ChatChunkChoice(Answer, frozen=True, kw_only=True):
    """What one answer gained."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: FinishReason | None = None


class ChatChunk(Answer, frozen=True, kw_only=True):
    """One event of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | msgspec.UnsetType | None = msgspec.UNSET
    """Only if asked for, as null in all but the last one."""


class Sample(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """One of several continuations of an input."""

    text: str
    finish_reason: FinishReason | None
    logprobs: TextLogprobs | None = None


class Output(Answer, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one input; with `n` over 1, `text` is the first of `samples`."""

    text: str
    finish_reason: FinishReason | None
    usage: Usage
    logprobs: TextLogprobs | None = None
    samples: list[Sample] = []


class Prediction(Answer, frozen=True, kw_only=True):
    """Answer of `/predict`: as many outputs as inputs, in the same order."""

    outputs: list[Output]
    id: str
    model: str


class PredictEvent(Answer, frozen=True, kw_only=True):
    """One event of a stream of `/predict`."""

    index: int
    """Place of the input."""
    text: str
    finish_reason: FinishReason | None
    sample: int | msgspec.UnsetType = msgspec.UNSET
    """Which continuation, with `n` over 1."""
    logprobs: TextLogprobs | msgspec.UnsetType = msgspec.UNSET
    usage: Usage | msgspec.UnsetType = msgspec.UNSET
    """With a continuation's last event."""


class EmbeddingUsage(Answer, frozen=True, kw_only=True):
    """Token counts."""

    prompt_tokens: int
    total_tokens: int


class Embedding(Answer, frozen=True, kw_only=True):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str
    """Numbers, or base64 of float32 (little-endian)."""


class EmbeddingList(Answer, frozen=True, kw_only=True):
    """Answer of `/v1/embeddings`."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class ModelCard(Answer, frozen=True, kw_only=True):
    """A model that is served."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "gangway"
    max_model_len: int


class ModelList(Answer, frozen=True, kw_only=True):
    """Answer of `/v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Health(Answer, frozen=True, kw_only=True):
    """Answer of `/healthz` and `/readyz`."""

    state: str
    generation: int = 0


class Queue(Answer, frozen=True, kw_only=True):
    """Requests that this gateway has accepted."""

    running: int
    """With a token, on their way to more."""
    waiting: int
    waiting_tokens: int
    """Prompt tokens of those without any token yet."""
    max_waiting: int


class KvUse(Answer, frozen=True, kw_only=True):
    """Blocks of the KV cache."""

    blocks_used: int
    blocks_total: int


class EngineCounters(Answer, frozen=True, kw_only=True):
    """The engine of this generation, as last heard."""

    running: int
    waiting: int
    steps: int
    prefill_tokens: int
    decode_tokens: int
    prefix_hit_tokens: int
    preemptions: int
    broadcast_bytes: int
    phase_seconds: dict[str, float]


class GatewayPlace(msgspec.Struct, kw_only=True):
    """The process that answers."""

    ip: str
    pid: int


class Suspect(Answer, frozen=True, kw_only=True):
    """A request that was there when several generations broke."""

    id: str
    prompt_tokens: int
    completion_tokens: int
    breaks: int
    """Generations that broke while it was with them."""
    breaks_alone: int
    """Those of them in which nothing else ran."""
    running: bool
    """It runs now, alone."""


class Status(Answer, frozen=True, kw_only=True):
    """Answer of `/v1/status`."""

    name: str
    model: str
    state: str
    """As the gateway sees it: a group's state, "connecting" or "unregistered"."""
    group_state: GroupState | None
    ready: bool
    generation: int
    ranks: list[RankInfo]
    gateway: GatewayPlace
    sampling_defaults: dict[str, int | float]
    """Defaults of the model's `generation_config.json`, by the parameters' names."""
    end_tokens: list[int]
    """Token ids that end an answer."""
    queue: Queue
    kv: KvUse
    engine: EngineCounters
    restarts: int
    first_failure: str | None
    last_failure: str | None
    suspects: list[Suspect]
    """They run one at a time until one breaks the group again, or all have run on."""
    culprits: list[Culprit]
    """The newest requests that were given up, as the group broke whenever they ran."""


class ErrorDetail(Answer, frozen=True, kw_only=True):
    """What went wrong, and which field."""

    type: str
    message: str
    param: str | None = None
    code: str | None = None


class ErrorAnswer(Answer, frozen=True, kw_only=True):
    """Every error, also as the last event of a stream."""

    error: ErrorDetail
