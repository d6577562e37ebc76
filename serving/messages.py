"""Every message that crosses a process, as frozen, tagged structs. Nothing on a wire is pickled.

Three wires: the link between gateway and rank 0 (`Submit`, `Cancel`, `Beat` one way; `StepOutput`, `Pulse` the other),
the broadcast from rank 0 to its followers (`StepPlan`), and what the registry stores (`Snapshot`).
"""

import struct
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec

T = TypeVar("T")

TokenId = int
RequestId = str


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, omit_defaults=True, array_like=False):
    """A frozen struct whose tag is its class name."""


# ---------------------------------------------------------------- sampling


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the next token is chosen: a pure function of (logits, these, seed, position).

    Stop strings stay in the gateway.
    """

    seed: int
    """Always set (the gateway draws one), so that a resumed request continues identically. 0 <= seed < 2**63."""
    max_tokens: int
    """Tokens to emit in all, those of an earlier generation included."""
    min_tokens: int = 0
    """No end-of-sequence or stop token before that many."""
    temperature: float = 1.0
    """0 is greedy, and so is what comes too near to it (`sampler.COLDEST`)."""
    top_p: float = 1.0
    """0 is greedy, as for `temperature`; 1 keeps all."""
    top_k: int = 0
    """0 keeps all, and so does the vocabulary's size or more."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output: divides positive logits, multiplies negative ones."""
    presence_penalty: float = 0.0
    """Subtracted once from each token id that was emitted."""
    frequency_penalty: float = 0.0
    """Subtracted per time a token id was emitted."""
    logit_bias: dict[TokenId, float] = {}
    stop_token_ids: tuple[TokenId, ...] = ()
    ignore_eos: bool = False
    logprobs: int = -1
    """-1: none; 0: of the chosen token; n: of the n likeliest besides. Taken before penalties and temperature."""


class Pooling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a prompt's last hidden states (behind the final norm) become one vector. Such a request draws no token."""

    how: Literal["mean", "last", "first"] = "mean"
    """Over all tokens, or that of the last or the first one."""
    normalize: bool = False
    """Scaled to a Euclidean length of 1."""


# ---------------------------------------------------------------- link: gateway -> rank 0


class Submit(Message, frozen=True, kw_only=True):
    """A request, whole. After a restart `emitted` holds what its client already has."""

    id: RequestId
    prompt: list[TokenId]
    emitted: list[TokenId] = []
    sampling: Sampling
    priority: int = 0
    """Lower runs first; equals run in order of arrival."""
    pooling: Pooling | None = None
    """Set: the answer is a vector, and of `sampling` nothing counts."""
    cache_salt: str = ""
    """Only requests with an equal one find its prompt in the prefix cache."""


class Cancel(Message, frozen=True, kw_only=True):
    """Drop these requests; unknown ids are nothing special (they may just have ended)."""

    ids: list[RequestId]


class Beat(Message, frozen=True, kw_only=True):
    """The gateway lives. Rank 0 drops the requests of a gateway that has been silent for `fault.peer_timeout_s`."""


ToEngine = Submit | Cancel | Beat


# ---------------------------------------------------------------- link: rank 0 -> gateway


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities (natural) at one emitted position, of the raw logits."""

    chosen: float
    top: list[tuple[TokenId, float]]
    """The likeliest first."""


FinishReason = Literal["stop", "length"]


class Delta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What one step did to one request. The one with `finish` or `error` is its last."""

    id: RequestId
    tokens: list[TokenId] = []
    logprobs: list[TokenLogprobs] | None = None
    finish: FinishReason | None = None
    """"stop": an end-of-sequence or stop token (the last of `tokens`); "length": max_tokens or max_model_len."""
    stop_token: TokenId | None = None
    """The token that ended it, when `finish` is "stop"."""
    error: str | None = None
    """The engine refuses it: a sentence for the caller."""
    cached_tokens: int = 0
    """With the first token: prompt tokens that came from the prefix cache."""
    embedding: bytes | None = None
    """The vector of a request with `pooling`, float32, little-endian (see `floats`); comes once, with `finish`."""


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """The engine at the end of a step. Counters only grow within a generation."""

    running: int = 0
    waiting: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    steps: int = 0
    prefill_tokens: int = 0
    decode_tokens: int = 0
    prefix_hit_tokens: int = 0
    preemptions: int = 0
    broadcast_bytes: int = 0
    phase_seconds: dict[str, float] = {}
    """Seconds spent so far in plan, broadcast, forward, sample, emit."""


class StepOutput(Message, frozen=True, kw_only=True):
    """All that one step produced, for every stream of this gateway: one message a step."""

    generation: int
    step: int
    deltas: list[Delta]
    stats: EngineStats


class Pulse(Message, frozen=True, kw_only=True):
    """Rank 0 lives and has nothing to say; sent at least every second."""

    generation: int
    stats: EngineStats


class Dropped(Message, frozen=True, kw_only=True):
    """Rank 0 has dropped all requests of this gateway, which was silent or did not read: it must connect again."""

    generation: int
    stats: EngineStats


ToGateway = StepOutput | Pulse | Dropped


# ---------------------------------------------------------------- broadcast: rank 0 -> followers


class NewSequence(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A sequence that followers have not seen, once and whole."""

    handle: int
    """Small number that stands for the request in plans."""
    tokens: list[TokenId]
    """Prompt, then what was emitted in an earlier generation."""
    prompt_len: int
    sampling: Sampling
    pooling: Pooling | None = None


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """What one sequence computes in a step, where that is more than its one next token."""

    handle: int
    start: int
    """Position of the first token computed."""
    count: int


class StepPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the next forward pass computes. New sequences whole, the rest as differences to the step before.

    Order of application: `finished`, `preempted`, `new`, `placed`, then compute `decode` and `prefill`.
    Rows of the ragged batch are `decode` in order, then `prefill` in order.
    """

    generation: int
    number: int
    finished: list[int] = []
    """Handles to forget."""
    preempted: list[int] = []
    """Handles that lose all their blocks, and compute again from a start given later."""
    new: list[NewSequence] = []
    placed: dict[int, list[int]] = {}
    """Handle -> KV block ids appended to its block table."""
    decode: list[int] = []
    """Handles that compute exactly their newest token."""
    prefill: list[Chunk] = []
    """A chunk that reaches the sequence's end samples a token, or completes its vector; any other does not."""
    stop: bool = False

    @property
    def computes(self) -> bool:
        """Whether it has rows; one without fills a silence, or only lets followers forget."""
        return bool(self.decode or self.prefill)

    """Leave the loop after this plan."""


# ---------------------------------------------------------------- registry

Purpose = Literal["serve", "application", "batch"]
"""What a group is for: to put an application before it, to stand behind one that is there, or to compute a batch."""

GroupState = Literal["starting", "loading", "ready", "restarting", "draining", "failed", "stopped"]


class RankInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the group."""

    rank: int
    node_id: str
    ip: str
    pid: int
    device: str
    shard_bytes: int = 0
    """Bytes of weights this rank holds."""
    loaded_bytes: int = 0
    """Progress while loading; equals `shard_bytes` when done."""
    rss_bytes: int = 0
    load_seconds: float = 0.0
    heads: int = 0
    """Attention heads this rank computes; 0 until it has loaded."""
    gave_up: str | None = None
    """Why this rank ended itself, where that was its own doing: a peer was gone, a step did not end."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Where rank 0's link listens, and the CURVE keys (Z85) of this generation. Never logged, never shown."""

    address: str
    """tcp://host:port"""
    server_public: str
    client_public: str
    client_secret: str


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """All that the registry knows of a group."""

    version: int
    """Grows with every change."""
    generation: int
    """Number of times the group was formed; 0 before the first."""
    state: GroupState
    endpoint: Endpoint | None = None
    """Set while a generation computes."""
    ranks: list[RankInfo] = []
    placement_group: str | None = None
    """Ray's id (hex) of what this generation holds of the cluster."""
    restarts: int = 0
    breaks: int = 0
    """Generations that broke, those that never became ready included; a move to other nodes is none."""
    first_failure: str | None = None
    last_failure: str | None = None
    owner: str | None = None
    """Token of the command that the group belongs to; None when it belongs to a Serve application."""
    brought_serve: bool = False
    """Serve was started with the group, and may go with it."""
    progress: dict[str, int] | None = None
    """How far a batch job is: rows and tokens that count, by name. None when the group serves."""


def encode(message: msgspec.Struct) -> bytes:
    """MessagePack bytes of any struct here."""
    return _encoder.encode(message)


def floats(embedding: bytes) -> list[float]:
    """The numbers of a `Delta.embedding`."""
    return list(struct.unpack(f"<{len(embedding) // 4}f", embedding))


def _refusing(decode: Callable[[bytes], T]) -> Callable[[bytes], T]:
    """The decoder, with one error for whatever is no message: msgspec has others for bad UTF-8 and deep nesting."""

    def checked(data: bytes) -> T:
        try:
            return decode(data)
        except (UnicodeDecodeError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from None

    return checked


_encoder = msgspec.msgpack.Encoder()
decode_to_engine: Callable[[bytes], ToEngine] = _refusing(msgspec.msgpack.Decoder(ToEngine).decode)
"""bytes -> ToEngine; raises msgspec.DecodeError, of which msgspec.ValidationError is one."""
decode_to_gateway: Callable[[bytes], ToGateway] = _refusing(msgspec.msgpack.Decoder(ToGateway).decode)
decode_plan: Callable[[bytes], StepPlan] = _refusing(msgspec.msgpack.Decoder(StepPlan).decode)
