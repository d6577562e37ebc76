"""A request that breaks every generation is found by running suspects alone; all others get their whole text."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from serving.config import FaultConfig
from serving.errors import RequestBreaksGroup
from serving.gateway.generation import Generation
from serving.gateway.journal import Entry
from serving.gateway.service import Service
from serving.gateway.suspects import Suspects
from serving.gateway.tokenizer import Tokenizer
from serving.messages import Pooling, Sampling, Submit
from tests.fake_engine import FakeGroup, answer, until
from tests.gateway.test_service import request, texts

POISON = [666, 6]
INNOCENT = [[7, place] for place in range(3)]
LENGTH = 60


def poisonous(after: int) -> object:
    """Breaks the engine once it has `after` tokens, in each generation again if it can."""
    return lambda submit, emitted: submit.prompt == POISON and emitted >= after


@asynccontextmanager
async def restarting(group: FakeGroup) -> AsyncIterator[None]:
    """A group that forms a new generation whenever one breaks."""

    async def nurse() -> None:
        while True:
            await until(lambda: group.engine is not None and group.engine.broken, 60)
            group.kill()
            group.start()

    task = asyncio.create_task(nurse())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def ask(service: Service, prompt: list[int], **parameters: int) -> asyncio.Task[dict[int, str]]:
    generation: Generation = service.generate(request([prompt], LENGTH, **parameters))  # type: ignore[arg-type]
    return asyncio.create_task(texts(generation))


@pytest.mark.parametrize("after", [0, 1, 5])
@pytest.mark.parametrize("place", [0, 3])
async def test_the_request_that_breaks_the_group_is_given_up_and_all_others_are_complete(
    service: Service, group: FakeGroup, tokenizer: Tokenizer, after: int, place: int
) -> None:
    group.behaviour.breaks_on = poisonous(after)  # type: ignore[assignment]
    group.behaviour.pause_s = 0.001
    prompts = [*INNOCENT[:place], POISON, *INNOCENT[place:]]
    async with restarting(group):
        tasks = [ask(service, prompt) for prompt in prompts]
        poison = tasks.pop(place)
        assert [await task for task in tasks] == [
            {0: tokenizer.decode(answer(1, prompt, LENGTH))} for prompt in INNOCENT
        ]
        with pytest.raises(RequestBreaksGroup) as caught:
            await poison
    assert caught.value.code == "request_breaks_group"
    assert group.snapshot.breaks == 4 <= FaultConfig().max_restarts
    assert len(service.journal) == 0
    [culprit] = service.suspects.culprits
    assert culprit.prompt_tokens == len(POISON)


async def test_a_request_for_a_vector_is_found_too_and_other_vectors_are_complete(
    service: Service, group: FakeGroup
) -> None:
    group.behaviour.breaks_on = poisonous(0)  # type: ignore[assignment]
    async with restarting(group):
        wanted = [replace(request([prompt]), pooling=Pooling()) for prompt in ([1, 2], POISON, [3, 4])]
        generations = [service.generate(one) for one in wanted]
        first, poison, last = [asyncio.create_task(texts(generation)) for generation in generations]
        with pytest.raises(RequestBreaksGroup):
            await poison
        await asyncio.gather(first, last)
    assert [generation.choices[0].embedding is not None for generation in generations] == [True, False, True]


async def test_an_equal_request_is_refused_at_once_whatever_its_seed(service: Service, group: FakeGroup) -> None:
    group.behaviour.breaks_on = poisonous(0)  # type: ignore[assignment]
    async with restarting(group):
        with pytest.raises(RequestBreaksGroup):
            await ask(service, POISON)
    engine = group.engine
    assert engine is not None
    with pytest.raises(RequestBreaksGroup):
        service.generate(request([POISON], LENGTH, seed=99))
    assert len(service.journal) == 0
    assert engine.submitted == []
    await texts(service.generate(request([POISON[::-1]], LENGTH)))


async def test_equal_requests_that_run_together_are_given_up_together(service: Service, group: FakeGroup) -> None:
    group.behaviour.breaks_on = poisonous(0)  # type: ignore[assignment]
    async with restarting(group):
        several = [ask(service, POISON, seed=seed) for seed in range(3)]
        outcomes = await asyncio.gather(*several, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [RequestBreaksGroup] * 3
    assert group.snapshot.breaks == 4


async def test_suspects_run_one_at_a_time_and_nothing_else_with_them(
    service: Service, group: FakeGroup, tokenizer: Tokenizer
) -> None:
    group.behaviour.max_emitted = 2
    tasks = [ask(service, prompt) for prompt in INNOCENT]
    for emitted in (2, 4):
        group.behaviour.max_emitted = emitted
        await until(lambda emitted=emitted: _all_have(service, emitted))  # type: ignore[misc]
        group.kill()
        group.start()
    await until(lambda: service.uplink.generation == 3)
    late = ask(service, [9, 9])
    together: list[tuple[int, ...]] = []

    def record(_submit: Submit, _emitted: int) -> bool:
        assert group.engine is not None
        here = tuple(one.submit.prompt[-1] for one in group.engine.running.values())
        if here not in together[-1:]:
            together.append(here)
        return False

    assert sum(entry.suspect for entry in service.journal.entries) == 3
    group.behaviour.breaks_on = record
    group.behaviour.max_emitted = 10**9
    whole = [*(answer(1, prompt, LENGTH) for prompt in INNOCENT), answer(1, [9, 9], LENGTH)]
    assert [await task for task in [*tasks, late]] == [{0: tokenizer.decode(ids)} for ids in whole]
    trials = [(0,), (1,), (2,)]
    assert together[:3] == trials
    assert all(9 not in here or together.index(here) > 2 for here in together)


def _all_have(service: Service, emitted: int) -> bool:
    return [len(entry.emitted) for entry in service.journal.entries] == [emitted] * 3


@pytest.mark.parametrize("alone", [True, False])
async def test_a_request_that_is_there_at_three_unrelated_breaks_is_complete(
    service: Service, group: FakeGroup, tokenizer: Tokenizer, alone: bool
) -> None:
    prompts = INNOCENT[:1] if alone else INNOCENT
    group.behaviour.max_emitted = 0
    tasks = [ask(service, prompt) for prompt in prompts]
    for generation in (1, 2, 3):
        await until(lambda: group.engine is not None and bool(group.engine.running))
        group.kill()
        group.start()
        await until(lambda generation=generation: service.uplink.generation == generation + 1)  # type: ignore[misc]
    group.behaviour.max_emitted = 10**9
    assert [await task for task in tasks] == [{0: tokenizer.decode(answer(1, prompt, LENGTH))} for prompt in prompts]
    assert not service.suspects.culprits


async def test_a_suspect_that_its_client_leaves_makes_way_for_the_next(service: Service, group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    left = service.generate(request([INNOCENT[0]], LENGTH))
    async with left:
        task = ask(service, INNOCENT[1])
        for generation in (1, 2):
            await until(lambda: group.engine is not None and bool(group.engine.running))
            group.kill()
            group.start()
            await until(lambda generation=generation: service.uplink.generation == generation + 1)  # type: ignore[misc]
        engine = group.engine
        assert engine is not None
        await until(lambda: len(engine.submitted) == 1)
    group.behaviour.max_emitted = 10**9
    await task


async def test_a_move_to_other_nodes_makes_no_suspect(service: Service, group: FakeGroup) -> None:
    group.behaviour.max_emitted = 0
    task = ask(service, INNOCENT[0])
    for generation in (1, 2, 3):
        await until(lambda: group.engine is not None and bool(group.engine.running))
        group.start()
        await until(lambda generation=generation: service.uplink.generation == generation + 1)  # type: ignore[misc]
    assert [entry.breaks for entry in service.journal.entries] == [0]
    group.behaviour.max_emitted = 10**9
    await task


def test_a_digest_is_of_what_is_computed_and_tells_nothing_without_its_key() -> None:
    def entry(**changes: object) -> Entry:
        return Entry(**({"id": "a", "prompt": [1, 2], "sampling": Sampling(seed=1, max_tokens=8)} | changes))  # type: ignore[arg-type]

    suspects = Suspects()
    same = [entry(), entry(id="b", priority=3), entry(sampling=Sampling(seed=2, max_tokens=8))]
    others = [entry(prompt=[1, 3]), entry(sampling=Sampling(seed=1, max_tokens=9))]
    assert len({suspects.digest(one) for one in same}) == 1
    assert len({suspects.digest(one) for one in [same[0], *others]}) == 3
    assert Suspects().digest(same[0]) != suspects.digest(same[0])


def test_what_is_remembered_of_culprits_is_bounded() -> None:
    suspects = Suspects()
    for number in range(3000):
        suspects.condemn(Entry("a", [number], Sampling(seed=1, max_tokens=8)))
    newest, oldest = Entry("b", [2999], Sampling(seed=1, max_tokens=8)), Entry("b", [0], Sampling(seed=1, max_tokens=8))
    suspects.check([oldest])
    with pytest.raises(RequestBreaksGroup):
        suspects.check([newest])
    assert len(suspects.culprits) < 100
    assert suspects.culprits_total == 3000
