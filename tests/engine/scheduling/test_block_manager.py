"""KV accounting: who owns which block, and whose content may be used again."""

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.engine.scheduling.block_manager import BlockManager, BlockTable, chain_hash, salt_root

TOKENS = list(range(100, 120))


def manager(num_blocks: int = 8, *, prefix_cache: bool = True) -> BlockManager:
    return BlockManager(num_blocks, 4, prefix_cache=prefix_cache)


def computed(blocks: BlockManager, tokens: list[int], salt: str = "") -> BlockTable:
    """The table of a sequence whose tokens have all been computed."""
    table = BlockTable(root=salt_root(salt))
    blocks.allocate(table, blocks.blocks_for(len(tokens)))
    blocks.publish(table, tokens, len(tokens))
    return table


def matched(blocks: BlockManager, tokens: list[int], salt: str = "") -> list[int]:
    return blocks.match(BlockTable(root=salt_root(salt)), tokens)


def test_blocks_are_counted_by_whole_ones() -> None:
    assert [manager().blocks_for(tokens) for tokens in (0, 1, 4, 5, 8)] == [0, 1, 1, 2, 2]


def test_a_freed_block_can_be_allocated_again() -> None:
    blocks = manager(2)
    table = BlockTable()
    assert sorted(blocks.allocate(table, 2)) == [0, 1]
    assert (blocks.used, blocks.available) == (2, 0)
    blocks.free(table)
    assert (blocks.used, blocks.available) == (0, 2)
    assert table == BlockTable()
    assert sorted(blocks.allocate(BlockTable(), 2)) == [0, 1]


def test_asking_for_more_blocks_than_there_are_changes_nothing() -> None:
    blocks, table = manager(2), BlockTable()
    with pytest.raises(ValueError, match="3 KV blocks asked for, 2 available"):
        blocks.allocate(table, 3)
    assert blocks.available == 2
    assert not table.blocks


def test_an_equal_prefix_is_found_once_it_is_computed() -> None:
    blocks, table = manager(), BlockTable()
    blocks.allocate(table, 3)
    assert matched(blocks, TOKENS) == []
    blocks.publish(table, TOKENS, 7)
    assert matched(blocks, TOKENS) == table.blocks[:1]
    blocks.publish(table, TOKENS, 12)
    assert matched(blocks, TOKENS) == table.blocks[:3]


def test_the_last_token_is_always_left_to_compute() -> None:
    blocks = manager()
    table = computed(blocks, TOKENS[:8])
    assert matched(blocks, TOKENS[:8]) == table.blocks[:1]
    assert matched(blocks, TOKENS[:9]) == table.blocks[:2]
    assert matched(blocks, TOKENS[:1]) == []


def test_equal_tokens_after_a_different_beginning_are_not_equal() -> None:
    blocks = manager()
    computed(blocks, TOKENS[:8])
    assert matched(blocks, [1, 2, 3, 4, *TOKENS[4:9]]) == []


def test_equal_tokens_under_another_salt_are_not_found() -> None:
    blocks = manager(num_blocks=12)
    tables = {salt: computed(blocks, TOKENS[:12], salt) for salt in ("", "a", "b")}
    for salt, table in tables.items():
        assert matched(blocks, TOKENS, salt) == table.blocks
    assert matched(blocks, TOKENS, "c") == []


def test_a_salt_cannot_be_made_up_for_from_tokens() -> None:
    """The root of a salt is no chain hash, and without a salt the chain is as it would be without salts."""
    assert salt_root("") == b""
    assert salt_root("a") != salt_root("b")
    assert salt_root("a") != hashlib.blake2b(b"a", digest_size=16).digest()


def test_a_block_stays_until_its_last_sharer_lets_go() -> None:
    blocks = manager()
    first, second = computed(blocks, TOKENS[:8]), BlockTable()
    blocks.share(second, blocks.match(second, TOKENS[:9]))
    assert second.blocks == first.blocks
    assert blocks.used == 2
    blocks.free(first)
    assert blocks.used == 2
    blocks.free(second)
    assert blocks.used == 0


def test_a_free_block_keeps_its_content_until_it_is_reused() -> None:
    blocks = manager(4)
    table = computed(blocks, TOKENS[:8])
    cached = list(table.blocks)
    blocks.free(table)
    assert matched(blocks, TOKENS[:9]) == cached
    assert set(blocks.allocate(BlockTable(), 2)).isdisjoint(cached)
    blocks.allocate(BlockTable(), 2)
    assert matched(blocks, TOKENS[:9]) == []


def test_the_least_recently_used_content_goes_first_and_a_tail_before_its_prefix() -> None:
    blocks = manager(4)
    old, young = computed(blocks, TOKENS[:8]), computed(blocks, [1] * 8)
    old_first, young_blocks = old.blocks[0], list(young.blocks)
    blocks.free(old)
    blocks.free(young)
    blocks.allocate(BlockTable(), 1)
    assert matched(blocks, TOKENS[:9]) == [old_first]
    blocks.allocate(BlockTable(), 1)
    assert matched(blocks, TOKENS[:9]) == []
    assert matched(blocks, [1] * 9) == young_blocks


def test_a_block_without_cached_content_is_reused_before_one_with() -> None:
    blocks, plain = manager(3), BlockTable()
    cached = computed(blocks, TOKENS[:8])
    kept = list(cached.blocks)
    uncached = blocks.allocate(plain, 1)
    blocks.free(cached)
    blocks.free(plain)
    assert blocks.allocate(BlockTable(), 1) == uncached
    assert matched(blocks, TOKENS[:9]) == kept


def test_using_a_cached_block_makes_it_young_again() -> None:
    blocks = manager(4)
    old, young = computed(blocks, TOKENS[:8]), computed(blocks, [1] * 8)
    blocks.free(old)
    blocks.free(young)
    again = BlockTable()
    blocks.share(again, blocks.match(again, TOKENS[:9]))
    kept = list(again.blocks)
    blocks.free(again)
    blocks.allocate(BlockTable(), 2)
    assert matched(blocks, TOKENS[:9]) == kept
    assert matched(blocks, [1] * 9) == []


def test_sharing_an_idle_block_takes_it_from_those_available() -> None:
    blocks = manager(4)
    table = computed(blocks, TOKENS[:8])
    hits = matched(blocks, TOKENS[:9])
    assert blocks.idle(hits) == 0
    blocks.free(table)
    assert blocks.idle(hits) == 2
    blocks.share(BlockTable(), hits)
    assert (blocks.idle(hits), blocks.available) == (0, 2)


def test_two_that_computed_the_same_keep_the_first_block_findable() -> None:
    blocks = manager()
    first, second = computed(blocks, TOKENS[:4]), computed(blocks, TOKENS[:4])
    assert first.blocks != second.blocks
    blocks.free(second)
    assert matched(blocks, TOKENS[:5]) == first.blocks


def test_without_the_prefix_cache_nothing_is_hashed() -> None:
    blocks = manager(prefix_cache=False)
    table = computed(blocks, TOKENS)
    assert matched(blocks, TOKENS) == []
    assert table.chain == []


def test_a_hash_is_of_the_whole_chain_in_four_bytes_a_token() -> None:
    first = hashlib.blake2b(struct.pack("=2I", 1, 49151), digest_size=16).digest()
    assert chain_hash(b"", [1, 49151]) == first
    assert chain_hash(first, [3]) == hashlib.blake2b(first + struct.pack("=I", 3), digest_size=16).digest()
    assert chain_hash(chain_hash(b"", [1]), [2]) != chain_hash(b"", [1, 2])


@settings(max_examples=100)
@given(st.integers(4, 12), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 14)), max_size=60))
def test_blocks_are_conserved_and_found_only_with_their_own_content(
    num_blocks: int, sequences: list[tuple[int, int]]
) -> None:
    """Sequences of a few shared beginnings come, and the oldest leave when there is no room."""
    blocks = manager(num_blocks)
    living: list[BlockTable] = []
    content: dict[int, tuple[int, ...]] = {}
    for family, length in sequences:
        tokens = [family % 2] * (length // 2) + [family] * (length - length // 2) + [9]
        table = BlockTable()
        hits = blocks.match(table, tokens)
        for index, block in enumerate(hits):
            assert content[block] == tuple(tokens[: (index + 1) * 4])
        while blocks.blocks_for(len(tokens)) - len(hits) + blocks.idle(hits) > blocks.available:
            blocks.free(living.pop(0))
        blocks.share(table, hits)
        blocks.allocate(table, blocks.blocks_for(len(tokens)) - len(hits))
        blocks.publish(table, tokens, len(tokens))
        content |= {block: tuple(tokens[: (index + 1) * 4]) for index, block in enumerate(table.blocks)}
        living.append(table)
        assert blocks.used == len({block for table in living for block in table.blocks})
    for table in living:
        blocks.free(table)
    assert blocks.used == 0
