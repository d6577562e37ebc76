"""Which sequence owns which KV block, and which blocks hold a prefix that another sequence can reuse.

Numbers only: the tensors are in `attention.kv_cache`, on every rank, under the same block ids. Only full blocks are
shared, and only once all their tokens are computed, so a shared block is never written again. A block that nobody
references keeps its content until it is reused, the least recently used first. Sequences of different cache salts never
share a block: the salt is the root of the chain by which blocks are found.
"""

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from serving.messages import TokenId


def chain_hash(parent: bytes, tokens: Sequence[TokenId]) -> bytes:
    """16 bytes that stand for a block's tokens and for all that came before them (`parent`; empty for the first)."""
    return hashlib.blake2b(parent + array("I", tokens).tobytes(), digest_size=16).digest()


def salt_root(salt: str) -> bytes:
    """The parent of a salted sequence's first block: 16 bytes that no chain has, as they are hashed in another way."""
    return hashlib.blake2b(salt.encode(), digest_size=16, person=b"cache salt").digest() if salt else b""


@dataclass(slots=True)
class BlockTable:
    """One sequence's blocks, in order of position."""

    root: bytes = b""
    """Parent of its first block (see `salt_root`); only tables with an equal one find each other's blocks."""
    blocks: list[int] = field(default_factory=list)
    published: int = 0
    """Leading blocks whose content others can find."""
    chain: list[bytes] = field(default_factory=list)
    """Chain hashes of the leading full blocks, kept over a preemption so that nothing is hashed twice."""


class BlockManager:
    """Reference counts, the free list, and the index of cached blocks. Every method is O(blocks it touches)."""

    def __init__(self, num_blocks: int, block_size: int, *, prefix_cache: bool) -> None:
        self.total = num_blocks
        self.block_size = block_size
        self._prefix_cache = prefix_cache
        self._references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        """Unreferenced blocks, the next to be reused first: those without a cached content lead."""
        self._block_of: dict[bytes, int] = {}
        self._hash_of: dict[int, bytes] = {}

    @property
    def available(self) -> int:
        """Blocks that can be allocated, those with a cached content included."""
        return len(self._free)

    @property
    def used(self) -> int:
        """Blocks that some sequence references."""
        return self.total - len(self._free)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold that many tokens."""
        return -(-tokens // self.block_size)

    def match(self, table: BlockTable, tokens: Sequence[TokenId]) -> list[int]:
        """The longest run of cached blocks that `tokens` begins with; takes no reference.

        At most `(len(tokens) - 1) // block_size` of them, since the last token must be computed to sample from it.
        """
        hits: list[int] = []
        if not self._prefix_cache:
            return hits
        for digest in self._digests(table, tokens, 0, (len(tokens) - 1) // self.block_size):
            block = self._block_of.get(digest)
            if block is None:
                break
            hits.append(block)
        return hits

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of `blocks` nobody references: sharing them takes that many from `available`."""
        return sum(not self._references[block] for block in blocks)

    def share(self, table: BlockTable, hits: Sequence[int]) -> None:
        """Begin an empty table with blocks that `match` found just now."""
        for block in hits:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1
        table.blocks.extend(hits)
        table.published = len(hits)

    def allocate(self, table: BlockTable, count: int) -> list[int]:
        """Append `count` fresh blocks and return their ids. Raises ValueError when fewer are available."""
        if count > len(self._free):
            raise ValueError(f"{count} KV blocks asked for, {len(self._free)} available")
        fresh = [self._reuse() for _ in range(count)]
        table.blocks.extend(fresh)
        return fresh

    def publish(self, table: BlockTable, tokens: Sequence[TokenId], computed: int) -> None:
        """Let others find the blocks that are full now that the first `computed` tokens have been computed."""
        full = computed // self.block_size
        if not self._prefix_cache or full <= table.published:
            return
        for index, digest in enumerate(self._digests(table, tokens, table.published, full), table.published):
            self._register(table.blocks[index], digest)
        table.published = full

    def free(self, table: BlockTable) -> None:
        """Drop all of a table's references. The tail goes first, as a prefix is worth more than what follows it."""
        for block in reversed(table.blocks):
            self._references[block] -= 1
            if not self._references[block]:
                self._free[block] = None
                self._free.move_to_end(block, last=block in self._hash_of)
        table.blocks.clear()
        table.published = 0

    def _reuse(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._hash_of.pop(block, None)
        if digest is not None:
            del self._block_of[digest]
        self._references[block] = 1
        return block

    def _register(self, block: int, digest: bytes) -> None:
        """Two sequences may have computed the same tokens side by side; the first block stays the one that is found."""
        if digest not in self._block_of:
            self._block_of[digest] = block
            self._hash_of[block] = digest

    def _digests(self, table: BlockTable, tokens: Sequence[TokenId], start: int, stop: int) -> Iterator[bytes]:
        """Chain hashes of full blocks `start` to `stop`, each computed when first asked for."""
        chain, size = table.chain, self.block_size
        for index in range(start, stop):
            if index == len(chain):
                chain.append(chain_hash(chain[-1] if chain else table.root, tokens[index * size : (index + 1) * size]))
            yield chain[index]
