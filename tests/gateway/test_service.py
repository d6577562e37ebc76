"""A gateway's life over a real link, with an engine that dies, stalls and comes back."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Sequence

import pytest
import zmq

from serving.errors import DeadlineExceeded, GroupUnavailable, InvalidRequest, QueueFull
from serving.gateway.generation import Choice, Generation, GenerationRequest, Prompt, child_seed
from serving.gateway.journal import Journal
from serving.gateway.service import Observer, Service
from serving.gateway.tokenizer import Tokenizer
from serving.gateway.uplink import Uplink
from serving.link import LinkClient
from serving.messages import Delta, Sampling
from tests.fake_engine import EOS, Behaviour, FakeGroup, answer, until
from tests.gateway.conftest import make_config

PROMPT = [5, 6, 7]


def request(
    prompts: Sequence[list[int]] = (PROMPT,),
    max_tokens: int = 8,
    *,
    n: int = 1,
    seed: int | None = 1,
    stop: tuple[str, ...] = (),
    timeout_s: float | None = None,
    min_tokens: int = 0,
    logprobs: int = -1,
    stream: bool = True,
) -> GenerationRequest:
    return GenerationRequest(
        id=uuid.uuid4().hex,
        prompts=[Prompt(prompt, max_tokens) for prompt in prompts],
        sampling=Sampling(seed=0, max_tokens=1, min_tokens=min_tokens, logprobs=logprobs),
        seed=seed,
        n=n,
        stop=stop,
        timeout_s=timeout_s,
        stream=stream,
    )


async def texts(generation: Generation) -> dict[int, str]:
    """Read to the end: the text of each choice."""
    whole: dict[int, str] = {choice.index: "" for choice in generation.choices}
    async with generation:
        while pieces := await generation.next():
            for choice, piece in pieces:
                whole[choice.index] += piece.text
    return whole


async def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return [*await tokenizer.encode(text, param="prompt"), EOS]


async def test_a_request_gets_the_engines_tokens_as_text(service: Service, tokenizer: Tokenizer) -> None:
    generation = service.generate(request())
    assert await texts(generation) == {0: tokenizer.decode(answer(1, PROMPT, 8))}
    assert generation.choices[0].finish_reason == "length"
    assert generation.choices[0].completion_tokens == 8


async def test_a_stream_goes_on_over_restarts_with_nothing_lost_and_nothing_twice(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.max_emitted = 5
    generation = service.generate(request(max_tokens=20))
    reader = asyncio.create_task(texts(generation))
    for upto in (5, 9, 20):
        group.behaviour.max_emitted = upto
        await until(lambda upto=upto: len(generation.choices[0].entry.emitted) == upto)  # type: ignore[misc]
        if upto < 20:
            group.kill()
            await until(lambda: not service.ready)
            group.start()
    assert await reader == {0: tokenizer.decode(answer(1, PROMPT, 20))}
    assert [len(engine.submitted[0].emitted) for engine in group.engines] == [0, 5, 9]
    assert len(service.journal) == 0


async def test_tokens_in_flight_when_a_generation_dies_are_computed_again(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.tokens_per_step = 3
    readers = [asyncio.create_task(texts(service.generate(request([[9, place]], 40)))) for place in range(4)]
    for _ in range(3):
        await asyncio.sleep(0)
        group.kill()
        group.start()
    assert [await reader for reader in readers] == [
        {0: tokenizer.decode(answer(1, [9, place], 40))} for place in range(4)
    ]


async def test_requests_wait_through_a_restart_and_the_queue_is_bounded(service: Service, group: FakeGroup) -> None:
    group.kill()
    await until(lambda: service.state == "restarting")
    readers = [asyncio.create_task(texts(service.generate(request([[place]])))) for place in range(1, 9)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        service.generate(request())
    group.start()
    assert len(await asyncio.gather(*readers)) == 8
    assert len(service.journal) == 0


async def test_a_silent_rank_0_is_not_ready_and_keeps_its_requests(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    engine = group.engine
    assert engine is not None
    engine.silent = True
    reader = asyncio.create_task(texts(service.generate(request())))
    await until(lambda: not service.ready)
    engine.silent = False
    assert await reader == {0: tokenizer.decode(answer(1, PROMPT, 8))}
    assert len(engine.submitted) == 1


async def test_a_gateway_that_rank_0_has_dropped_submits_again(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    engine = group.engine
    assert engine is not None
    group.behaviour.max_emitted = 2
    reader = asyncio.create_task(texts(service.generate(request())))
    await until(lambda: bool(engine.running))
    engine.drops = True
    await until(lambda: len(engine.submitted) == 2)
    group.behaviour.max_emitted = 10**9
    assert await reader == {0: tokenizer.decode(answer(1, PROMPT, 8))}


async def test_leaving_a_request_cancels_it_at_once(service: Service, group: FakeGroup) -> None:
    group.behaviour.max_emitted = 2
    generation = service.generate(request([PROMPT, [8]], max_tokens=20))
    async with generation:
        await generation.next()
    assert len(service.journal) == 0
    engine = group.engine
    assert engine is not None
    await until(lambda: len(engine.cancelled) == 2)
    assert engine.running == {}


async def test_n_and_several_prompts_make_sequences_with_seeds_of_their_own(
    service: Service, tokenizer: Tokenizer
) -> None:
    got = await texts(service.generate(request([PROMPT, [8]], n=3)))
    seeds = [1, child_seed(1, 1), child_seed(1, 2)]
    expected = [tokenizer.decode(answer(seed, prompt, 8)) for prompt in (PROMPT, [8]) for seed in seeds]
    assert got == dict(enumerate(expected))
    assert len(set(expected)) == 6


async def test_without_a_seed_equal_prompts_get_different_ones(service: Service, group: FakeGroup) -> None:
    await texts(service.generate(request([PROMPT, PROMPT], seed=None)))
    engine = group.engine
    assert engine is not None
    first, second = (submit.sampling.seed for submit in engine.submitted)
    assert first != second
    assert 0 <= min(first, second) <= max(first, second) < 2**63


@pytest.mark.parametrize("tokens_per_step", [1, 4, 100])
async def test_a_stop_string_ends_the_text_and_the_computation(
    service: Service, group: FakeGroup, tokenizer: Tokenizer, tokens_per_step: int
) -> None:
    script = await ids_of(tokenizer, "One. Two. Three. Four. Five. Six. Seven.")
    group.behaviour = Behaviour(script=script, tokens_per_step=tokens_per_step)
    group.kill()
    group.start()
    generation = service.generate(request(max_tokens=30, stop=("ree. F", "zzz")))
    assert await texts(generation) == {0: "One. Two. Th"}
    assert generation.choices[0].finish_reason == "stop"
    engine = group.engine
    assert engine is not None
    await until(lambda: engine.running == {})
    assert len(service.journal) == 0


async def test_stop_strings_do_not_count_before_min_tokens(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.script = await ids_of(tokenizer, " a b c d a b c d")
    generation = service.generate(request(max_tokens=30, stop=(" c",), min_tokens=4))
    assert await texts(generation) == {0: " a b c d a b"}


async def test_the_token_that_ends_a_text_is_no_part_of_it(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.script = await ids_of(tokenizer, "Paris.")
    generation = service.generate(request(max_tokens=30, stop=("Paris..",), logprobs=1))
    tokens = []
    async with generation:
        while pieces := await generation.next():
            tokens += [token for _, piece in pieces for token in piece.tokens]
    assert [tokenizer.token_bytes(token.token).decode() for token in tokens] == ["Paris", "."]
    assert [token.text_offset for token in tokens] == [0, 5]
    assert generation.choices[0].finish_reason == "stop"
    assert generation.choices[0].completion_tokens == 3


async def test_logprobs_stop_where_the_text_does(service: Service, group: FakeGroup, tokenizer: Tokenizer) -> None:
    group.behaviour.script = await ids_of(tokenizer, " one two three four")
    generation = service.generate(request(max_tokens=30, stop=("three",), logprobs=0))
    async with generation:
        tokens = []
        while pieces := await generation.next():
            tokens += [token for _, piece in pieces for token in piece.tokens]
    assert [tokenizer.token_bytes(token.token).decode() for token in tokens] == [" one", " two", " three"]


async def test_a_deadline_that_passes_in_the_queue_is_told_from_one_that_passes_later(
    service: Service, group: FakeGroup
) -> None:
    group.behaviour.max_emitted = 0
    with pytest.raises(DeadlineExceeded) as caught:
        await texts(service.generate(request(timeout_s=0.05)))
    assert caught.value.code == "queue_timeout"
    group.behaviour.max_emitted = 1
    with pytest.raises(DeadlineExceeded) as caught:
        await texts(service.generate(request(timeout_s=0.2)))
    assert caught.value.code == "deadline_exceeded"
    engine = group.engine
    assert engine is not None
    await until(lambda: engine.running == {})
    assert len(service.journal) == 0


async def test_what_the_engine_refuses_is_the_callers_error(service: Service, group: FakeGroup) -> None:
    group.behaviour.refuse = "it does not fit"
    with pytest.raises(InvalidRequest, match="it does not fit"):
        await texts(service.generate(request(n=2)))
    assert len(service.journal) == 0


async def test_a_group_that_failed_for_good_ends_every_request_and_tells_clients_where_the_reason_is(
    service: Service, group: FakeGroup
) -> None:
    group.behaviour.max_emitted = 1
    reader = asyncio.create_task(texts(service.generate(request())))
    await until(lambda: service.count() == 0 and len(service.journal) == 1)
    group.kill("failed")
    with pytest.raises(GroupUnavailable, match=r"^the group has failed; /v1/status says why$"):
        await reader
    with pytest.raises(GroupUnavailable, match=r"^the group has failed; /v1/status says why$"):
        service.generate(request())


async def test_draining_refuses_what_is_new_and_finishes_what_runs(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.max_emitted = 3
    reader = asyncio.create_task(texts(service.generate(request())))
    await asyncio.sleep(0)
    drained = asyncio.create_task(service.drain())
    await until(lambda: service.state == "draining")
    with pytest.raises(GroupUnavailable):
        service.generate(request())
    group.behaviour.max_emitted = 100
    await asyncio.wait_for(drained, 5)
    assert await reader == {0: tokenizer.decode(answer(1, PROMPT, 8))}


async def test_a_draining_group_finishes_what_runs_and_takes_nothing_new(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.max_emitted = 3
    reader = asyncio.create_task(texts(service.generate(request())))
    group.turn("draining")
    await until(lambda: service.state == "draining")
    with pytest.raises(GroupUnavailable):
        service.check_admission()
    group.behaviour.max_emitted = 100
    assert await reader == {0: tokenizer.decode(answer(1, PROMPT, 8))}


async def test_nothing_is_accepted_before_the_first_generation_is_ready(tokenizer: Tokenizer, group: FakeGroup) -> None:
    service = Service(make_config(), tokenizer, group)
    await service.start()
    assert service.state == "starting"
    with pytest.raises(GroupUnavailable):
        service.generate(request())
    group.turn("loading")
    await until(lambda: service.state == "loading")
    group.start()
    await until(lambda: service.ready)
    await texts(service.generate(request()))
    await service.stop()


async def test_serving_goes_on_while_the_registry_is_gone(service: Service, group: FakeGroup) -> None:
    group.gone = True
    group.turn("ready")
    await until(lambda: not service.uplink.registered)
    assert service.ready
    await texts(service.generate(request()))
    engine = group.engine
    assert engine is not None
    engine.die()
    await until(lambda: service.state == "unregistered")
    with pytest.raises(GroupUnavailable):
        service.generate(request())
    group.gone = False
    group.start()
    await until(lambda: service.ready)
    await texts(service.generate(request()))


async def test_a_group_that_stays_away_too_long_ends_every_request(tokenizer: Tokenizer, group: FakeGroup) -> None:
    service = Service(make_config("fault.restart_window_s=0.5"), tokenizer, group)
    group.start()
    await service.start()
    await until(lambda: service.ready)
    group.kill()
    await until(lambda: not service.ready)
    with pytest.raises(GroupUnavailable, match="has been gone"):
        await texts(service.generate(request()))
    await service.stop()


async def test_a_reader_that_does_not_read_costs_no_more_than_its_answer(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    generation = service.generate(request(max_tokens=200))
    async with generation:
        await until(lambda: generation.choices[0].finish_reason is not None)
        [(_, piece)] = await generation.next()
    assert piece.text == tokenizer.decode(answer(1, PROMPT, 200))


async def test_a_reader_that_does_not_stream_is_woken_once(service: Service) -> None:
    generation = service.generate(request(n=2, stream=False))
    async with generation:
        assert len(await generation.next()) == 2
        assert await generation.next() == []


async def test_counters_go_on_growing_over_generations(service: Service, group: FakeGroup) -> None:
    await texts(service.generate(request()))
    before = service.uplink.totals.counters["steps"]
    group.kill()
    group.start()
    await until(lambda: service.uplink.stats.steps == 0)
    await texts(service.generate(request(max_tokens=4)))
    assert service.uplink.totals.counters["steps"] == before + 4


async def test_the_gateway_keeps_telling_that_it_lives(service: Service, group: FakeGroup) -> None:
    engine = group.engine
    assert engine is not None
    await until(lambda: engine.beats >= 3)


def test_a_childs_seed_depends_on_the_seed_and_its_place() -> None:
    seeds = {child_seed(seed, child) for seed in range(20) for child in range(16)}
    assert len(seeds) == 320
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert child_seed(7, 0) == 7


def failing_once(function: Callable[..., object], error: Exception) -> Callable[..., object]:
    """As `function`, but the first call raises."""
    pending = [error]

    def call(*args: object, **kwargs: object) -> object:
        if pending:
            raise pending.pop()
        return function(*args, **kwargs)

    return call


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (LinkClient, "__init__"),
        (LinkClient, "send"),
        (LinkClient, "receive"),
        (Uplink, "_turn_to"),
        (Uplink, "_mind_the_silence"),
        (Service, "on_link"),
        (Service, "on_output"),
        (Journal, "lose_link"),
        (Journal, "find"),
    ],
)
async def test_an_unforeseen_error_in_the_uplink_is_logged_and_the_link_stands_again(
    service: Service,
    group: FakeGroup,
    tokenizer: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owner: type,
    name: str,
) -> None:
    monkeypatch.setattr(logging.getLogger("serving"), "propagate", True)
    group.behaviour.max_emitted = 2
    reader = asyncio.create_task(texts(service.generate(request())))
    await until(lambda: [len(entry.emitted) for entry in service.journal.entries] == [2])
    monkeypatch.setattr(owner, name, failing_once(getattr(owner, name), zmq.ZMQError(zmq.ENOTSOCK, "injected")))
    group.kill()
    group.start()
    group.behaviour.max_emitted = 10**9
    assert await asyncio.wait_for(reader, 30) == {0: tokenizer.decode(answer(1, PROMPT, 8))}
    await until(lambda: service.ready)
    await until(lambda: "injected" in caplog.text)


async def test_an_error_in_one_choice_fails_its_request_and_no_other(
    service: Service, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    push = Choice.push

    def pushed(choice: Choice, delta: Delta) -> bool:
        if choice.entry.prompt == [666]:
            raise RuntimeError("injected")
        return push(choice, delta)

    monkeypatch.setattr(Choice, "push", pushed)
    wrong, right = (asyncio.create_task(texts(service.generate(request([prompt])))) for prompt in ([666], PROMPT))
    with pytest.raises(RuntimeError, match="injected"):
        await wrong
    assert await right == {0: tokenizer.decode(answer(1, PROMPT, 8))}
    assert len(service.journal) == 0


async def test_an_observer_that_fails_hurts_no_request(service: Service, tokenizer: Tokenizer) -> None:
    class Failing(Observer):
        def accepted(self, generation: Generation) -> None:
            raise RuntimeError("injected")

        submitted = first_tokens = next_tokens = ended = accepted  # type: ignore[assignment]

    service.observers.append(Failing())
    assert await texts(service.generate(request())) == {0: tokenizer.decode(answer(1, PROMPT, 8))}
    assert len(service.journal) == 0
