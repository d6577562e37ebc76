"""How an MLP is split where the heads do not divide."""

import torch

from serving.engine.assembly import Share
from serving.engine.balance import GRAIN, even_out, split


class PairOfRanks:
    """One rank's view of a sum of two: the other rank's numbers are known beforehand."""

    world = 2
    own = None

    def __init__(self, rank: int, others: torch.Tensor) -> None:
        self.rank = rank
        self.others = others

    def all_reduce(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(self.others)


def test_a_rank_with_more_heads_takes_fewer_columns() -> None:
    assert split(1536, [589_824, 294_912], 1728) == [672, 864]  # SmolLM2-135M over two ranks: 6 and 3 heads


def test_equal_ranks_are_split_in_equal_parts() -> None:
    assert split(1024, [100, 100], 10) == [512, 512]


def test_a_rank_that_has_enough_gets_none() -> None:
    assert split(256, [10_000, 0, 0], 10) == [0, 128, 128]


def test_every_column_is_somebodys() -> None:
    for columns in (1, 31, 64, 1000, 4864):
        widths = split(columns, [7_000, 900, 7_000], 13)
        assert sum(widths) == columns
        assert min(widths) >= 0
        assert all(sum(widths[:rank]) % GRAIN == 0 for rank in range(2)) or columns < GRAIN


def llama_shares(first: int, last: int) -> dict[str, Share]:
    return {
        "layers.0.self_attn.q_proj": Share(rows=torch.arange(384)),
        "layers.0.self_attn.o_proj": Share(columns=(0, 384)),
        "layers.0.mlp.gate_proj": Share(rows=torch.arange(first, last)),
        "layers.0.mlp.up_proj": Share(rows=torch.arange(first, last)),
        "layers.0.mlp.down_proj": Share(columns=(first, last)),
    }


def llama_shapes(attention_rows: int) -> dict[str, tuple[int, ...]]:
    """Of rank 0's half of a layer of SmolLM2-135M, its q_proj and o_proj of `attention_rows` each."""
    return {
        "layers.0.self_attn.q_proj": (attention_rows, 576),
        "layers.0.self_attn.o_proj": (576, attention_rows),
        "layers.0.mlp.gate_proj": (768, 576),
        "layers.0.mlp.up_proj": (768, 576),
        "layers.0.mlp.down_proj": (576, 768),
    }


def test_the_layers_of_one_mlp_are_moved_together_and_attention_is_not() -> None:
    shares = llama_shares(0, 768)
    shapes = llama_shapes(attention_rows=512)
    evened = even_out(shares, shapes, PairOfRanks(0, torch.tensor([[[0, 294_912], [0, 768]]])), torch.device("cpu"))
    assert evened["layers.0.mlp.down_proj"].columns == (0, 672)
    for name in ("gate_proj", "up_proj"):
        rows = evened[f"layers.0.mlp.{name}"].rows
        assert rows is not None
        assert (int(rows[0]), int(rows[-1]), len(rows)) == (0, 671, 672)
    assert evened["layers.0.self_attn.o_proj"].columns == (0, 384)


def test_ranks_that_hold_the_same_keep_their_split() -> None:
    shares = llama_shares(0, 768)
    shapes = llama_shapes(attention_rows=512)
    evened = even_out(shares, shapes, PairOfRanks(0, torch.tensor([[[0, 589_824], [0, 768]]])), torch.device("cpu"))
    assert evened == shares


def test_a_fused_projection_of_two_runs_stays_as_it_is() -> None:
    shares = {
        "layers.0.self_attn.o_proj": Share(columns=(0, 384)),
        "layers.0.mlp.gate_up_proj": Share(rows=torch.cat([torch.arange(64), torch.arange(128, 192)])),
        "layers.0.mlp.down_proj": Share(columns=(0, 64)),
    }
    shapes = dict.fromkeys(shares, (128, 128))
    assert even_out(shares, shapes, PairOfRanks(0, torch.tensor([[[0, 7], [0, -1]]])), torch.device("cpu")) == shares
