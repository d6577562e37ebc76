"""What clients may send: every field with its type and bounds, unknown names refused, null the same as absent.

Types are strict ("5" is no number); whole numbers are taken for fractions. Bounds that depend on the model or the
configuration are checked in `serving.api.prepare`.
"""

from typing import Annotated, Literal

from pydantic import Field

from serving.api.neutral import (
    Fields,
    NeutralChat,
    NeutralCompletion,
    NeutralEmbedding,
    NeutralMessage,
    NeutralPart,
    NeutralSampling,
    OnlyFalse,
)

MAX_N = 16
MAX_LOGPROBS = 20


Salt = Annotated[str, Field(min_length=1, max_length=256)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenKey = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Token = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[float, Field(ge=-100, le=100)]
# A list gives up at its first fault: one complaint for each of the millions of places in a body would fill the memory.
Texts = Annotated[list[str], Field(fail_fast=True)]
Tokens = Annotated[list[Token], Field(fail_fast=True)]
Prompts = Annotated[list[Tokens], Field(fail_fast=True)]


class SamplingFields(NeutralSampling):
    """The parameters that all endpoints share."""

    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    """Longest answer, in tokens."""
    min_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    """No end before that many tokens."""
    temperature: float | None = Field(default=None, ge=0, le=2)
    """0 takes the likeliest token always; 1 is the default."""
    top_p: float | None = Field(default=None, ge=0, le=1)
    """Keep the likeliest tokens that together have this probability; 0 takes the likeliest one always."""
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    """Keep that many of the likeliest tokens; 0, -1 or as many as there are keeps all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenKey, Bias], Field(max_length=1024)] | None = None
    """Token id (as a string) to what is added to its logit."""
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    """Equal seeds, parameters and prompts give equal answers."""
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    """The answer ends before any of these."""
    stop_token_ids: Annotated[list[Token], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    """Go on to `max_tokens` whatever the model says."""
    n: int | None = Field(default=None, ge=1, le=MAX_N)
    """Answers per prompt."""
    timeout_s: float | None = Field(default=None, gt=0, le=86_400)
    """Give up after that many seconds (408 while it waited, 504 later)."""
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    """Lower runs first; 0 is the default."""
    cache_salt: Salt | None = None
    """Prompts are found in the prefix cache only by requests with an equal one (of the same API key's name, if keys are
    asked for), so that nobody learns from an answer's speed what somebody else has asked."""


class TextPart(NeutralPart):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(NeutralMessage):
    """One turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)] | None = None
    name: str | None = None

    def text(self) -> str:
        """The content in one piece."""
        if self.content is None or isinstance(self.content, str):
            return self.content or ""
        return "".join(part.text for part in self.content)


Chat = Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]


class PredictParameters(SamplingFields):
    """How `/predict` samples."""

    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    """Log-probabilities of the chosen token, and of that many of the likeliest."""


class PredictRequest(Fields):
    """Body of `POST /predict`."""

    inputs: str | Annotated[list[str | Chat], Field(min_length=1, fail_fast=True)]
    """A prompt, or a list of prompts and chats; the answer has as many outputs, in the same order.

    A prompt is a user's message to a model that has a chat template, and a text to go on with for any other.
    """
    raw: bool | None = None
    """Go on with each prompt as it stands, also where the model has a chat template."""
    parameters: PredictParameters | None = None
    stream: bool | None = None


class StreamOptions(Fields):
    """What a stream carries besides text."""

    include_usage: bool | None = None
    """One more event at the end, with the token counts."""
    continuous_usage_stats: bool | None = None
    """Token counts so far in each event."""
    include_obfuscation: OnlyFalse = None


class OpenAIFields(SamplingFields):
    """What both OpenAI endpoints share."""

    model: str | None = None
    """The served model's name; may be left out."""
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """Taken and not used."""


class CompletionRequest(NeutralCompletion, OpenAIFields):
    """Body of `POST /v1/completions`."""

    prompt: str | Texts | Tokens | Prompts
    """Text or token ids, one prompt or several."""
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)


class EmbeddingRequest(NeutralEmbedding):
    """Body of `POST /v1/embeddings`."""

    input: str | Texts | Tokens | Prompts
    """Text or token ids, one or several; the answer has as many vectors, in the same order. Nothing is cut off."""
    model: str | None = None
    """The served model's name; may be left out."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of the float32 numbers, little-endian."""
    pooling: Literal["mean", "last", "first"] | None = None
    """Of the last hidden states: their mean (the default), that of the last token, or of the first one."""
    normalize: bool | None = None
    """Scale each vector to a length of 1; false is the default."""
    timeout_s: float | None = Field(default=None, gt=0, le=86_400)
    """Give up after that many seconds."""
    priority: int | None = Field(default=None, ge=-(2**31), lt=2**31)
    """Lower runs first; 0 is the default."""
    cache_salt: Salt | None = None
    """Prompts are found in the prefix cache only by requests with an equal one (of the same API key's name, if keys are
    asked for), so that nobody learns from an answer's speed what somebody else has asked."""
    user: str | None = None
    """Taken and not used."""


class ChatRequest(NeutralChat, OpenAIFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Chat
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    """Newer name of `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    modalities: Annotated[list[Literal["text"]], Field(max_length=1)] | None = None
    metadata: Annotated[dict[str, str], Field(max_length=16)] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
