"""How an MLP is split where the heads do not divide. `tests/distributed` loads and computes with it."""

from serving.engine.loading.mlp_balance import GRAIN, split


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
