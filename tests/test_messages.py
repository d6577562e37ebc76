"""Messages: each comes back from its bytes as it was, and nothing else is taken for one."""

import msgspec
import pytest

from serving.messages import (
    Beat,
    Cancel,
    Chunk,
    Delta,
    Endpoint,
    EngineStats,
    NewSequence,
    Pulse,
    RankInfo,
    Sampling,
    Snapshot,
    StepOutput,
    StepPlan,
    Submit,
    ToEngine,
    ToGateway,
    TokenLogprobs,
    decode_plan,
    decode_to_engine,
    decode_to_gateway,
    encode,
)

PLAIN = Sampling(seed=0, max_tokens=1)
FULL = Sampling(
    seed=2**63 - 1,
    max_tokens=100,
    min_tokens=3,
    temperature=0.0,
    top_p=0.9,
    top_k=40,
    min_p=0.1,
    repetition_penalty=1.1,
    presence_penalty=-0.5,
    frequency_penalty=0.25,
    logit_bias={5: -100.0, 49151: 2.5},
    stop_token_ids=(7, 8),
    ignore_eos=True,
    logprobs=5,
)
STATS = EngineStats(running=1, waiting=2, kv_blocks_used=3, kv_blocks_total=4, steps=5, phase_seconds={"plan": 0.5})
DELTAS = [
    Delta(id="a", tokens=[1], logprobs=[TokenLogprobs(chosen=-0.5, top=[(1, -0.5), (2, float("-inf"))])]),
    Delta(id="b", tokens=[2], finish="stop", stop_token=2, cached_tokens=32),
    Delta(id="c", tokens=[9], finish="length"),
    Delta(id="d", error="too long"),
]
TO_ENGINE: list[ToEngine] = [
    Submit(id="a", prompt=[1], sampling=PLAIN),
    Submit(id="ü", prompt=[0, 49151], emitted=[3], sampling=FULL, priority=-2),
    Submit(id="b", prompt=[1], sampling=PLAIN, cache_salt="alice\nü"),
    Cancel(ids=[]),
    Cancel(ids=["a", "b"]),
    Beat(),
]
TO_GATEWAY: list[ToGateway] = [
    StepOutput(generation=1, step=2, deltas=DELTAS, stats=STATS),
    StepOutput(generation=1, step=2, deltas=[], stats=EngineStats()),
    Pulse(generation=3, stats=STATS),
]
PLANS = [
    StepPlan(generation=1, number=1),
    StepPlan(generation=1, number=1, stop=True),
    StepPlan(
        generation=2,
        number=2**40,
        finished=[1],
        preempted=[2],
        new=[
            NewSequence(handle=3, tokens=[1, 2], prompt_len=1, sampling=FULL),
            NewSequence(handle=4, tokens=[1], prompt_len=1, sampling=PLAIN),
        ],
        placed={3: [0, 5], 4: [6]},
        decode=[7, 8],
        prefill=[Chunk(3, 0, 2), Chunk(4, 0, 1)],
    ),
]
SNAPSHOTS = [
    Snapshot(version=0, generation=0, state="starting"),
    Snapshot(
        version=9,
        generation=2,
        state="ready",
        endpoint=Endpoint(address="tcp://h:1", server_public="p", client_public="q", client_secret="s"),
        ranks=[RankInfo(rank=0, node_id="n", ip="i", pid=1, device="cpu", shard_bytes=2, load_seconds=0.5)],
        restarts=1,
        first_failure="rank 1 died",
        last_failure="rank 1 died",
    ),
]


def named(message: msgspec.Struct) -> str:
    return type(message).__name__


@pytest.mark.parametrize("message", TO_ENGINE, ids=named)
def test_a_message_to_the_engine_comes_back_as_it_was(message: ToEngine) -> None:
    assert decode_to_engine(encode(message)) == message


@pytest.mark.parametrize("message", TO_GATEWAY, ids=named)
def test_a_message_to_the_gateway_comes_back_as_it_was(message: ToGateway) -> None:
    assert decode_to_gateway(encode(message)) == message


@pytest.mark.parametrize("plan", PLANS)
def test_a_plan_comes_back_as_it_was(plan: StepPlan) -> None:
    assert decode_plan(encode(plan)) == plan


@pytest.mark.parametrize("snapshot", SNAPSHOTS)
def test_a_snapshot_comes_back_as_it_was(snapshot: Snapshot) -> None:
    assert msgspec.msgpack.decode(encode(snapshot), type=Snapshot) == snapshot


@pytest.mark.parametrize("message", [{"type": "Shutdown"}, {"type": "Sampling"}, {}, {"type": 1}, [], None])
def test_an_unknown_tag_is_refused(message: object) -> None:
    data = msgspec.msgpack.encode(message)
    for decode in (decode_to_engine, decode_to_gateway):
        with pytest.raises(msgspec.ValidationError):
            decode(data)


def test_the_two_directions_of_the_link_are_not_mixed_up() -> None:
    for sent in TO_ENGINE:
        with pytest.raises(msgspec.ValidationError):
            decode_to_gateway(encode(sent))
    for received in TO_GATEWAY:
        with pytest.raises(msgspec.ValidationError):
            decode_to_engine(encode(received))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "a", "prompt": ["one"], "sampling": {"seed": 1, "max_tokens": 1}},
        {"id": "a", "prompt": [1], "sampling": {"max_tokens": 1}},
        {"id": 5, "prompt": [1], "sampling": {"seed": 1, "max_tokens": 1}},
        {"id": "a", "prompt": [1]},
    ],
)
def test_a_submit_with_a_missing_or_mistyped_field_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_to_engine(msgspec.msgpack.encode({"type": "Submit", **fields}))


@pytest.mark.parametrize("message", [*TO_ENGINE, *TO_GATEWAY], ids=named)
def test_bytes_cut_short_are_refused(message: msgspec.Struct) -> None:
    data = encode(message)
    for length in range(len(data)):
        for decode in (decode_to_engine, decode_to_gateway):
            with pytest.raises((msgspec.DecodeError, msgspec.ValidationError)):
                decode(data[:length])


def test_a_message_is_frozen() -> None:
    message = Cancel(ids=["a"])
    with pytest.raises(AttributeError):
        message.ids = []  # type: ignore[misc]


def test_a_steady_step_is_a_small_plan() -> None:
    steady = StepPlan(generation=1, number=1000, decode=list(range(32)))
    assert len(encode(steady)) < 100
