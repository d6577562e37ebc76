"""What changes a row's logits before the draw and needs no other rank: bias, penalties, forbidden ends."""

from collections.abc import Sequence

import torch
from torch import Tensor

from serving.messages import Sampling

LEAST_REPETITION = 1e-20
"""Repetition penalties below count as this: logits that are divided by it are beyond all others, and finite."""


def adjusts(sampling: Sampling, outputs: int) -> bool:
    """Whether `adjust` would change anything for a row that has drawn so many tokens."""
    penalised = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
    return bool(sampling.logit_bias or sampling.repetition_penalty != 1.0 or penalised or outputs < sampling.min_tokens)


def adjust(
    row: Tensor, sampling: Sampling, tokens: Sequence[int], prompt_len: int, first_id: int, eos_ids: frozenset[int]
) -> None:
    """Apply bias, penalties and `min_tokens` in place.

    Args:
        row: float32 [slice], logits of ids [first_id, first_id + slice).
        sampling: the request's parameters.
        tokens: prompt, then output.
        prompt_len: tokens of the prompt.
        first_id: first id of this rank's slice.
        eos_ids: ids that end a sequence unless `ignore_eos`.
    """
    for token, bias in sampling.logit_bias.items():
        if 0 <= token - first_id < len(row):
            row[token - first_id] += bias
    if sampling.repetition_penalty != 1.0:
        _repetition(row, sampling.repetition_penalty, tokens, first_id)
    if sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0:
        emitted = _local(tokens[prompt_len:], first_id, len(row))
        counts = torch.bincount(emitted, minlength=len(row)).to(row.device, non_blocking=True)
        row -= sampling.frequency_penalty * counts + sampling.presence_penalty * (counts > 0)
    if len(tokens) - prompt_len < sampling.min_tokens:
        ends = set(sampling.stop_token_ids) | (set() if sampling.ignore_eos else eos_ids)
        row[_local(sorted(ends), first_id, len(row)).to(row.device, non_blocking=True)] = float("-inf")


def _repetition(row: Tensor, penalty: float, tokens: Sequence[int], first_id: int) -> None:
    """As CTRL (Keskar et al., 2019) and Hugging Face have it: seen ids become less likely whatever their sign."""
    seen = _local(sorted(set(tokens)), first_id, len(row)).to(row.device, non_blocking=True)
    values, penalty = row[seen], max(penalty, LEAST_REPETITION)
    row[seen] = torch.where(values > 0, values / penalty, values * penalty)


def _local(ids: Sequence[int], first_id: int, count: int) -> Tensor:
    """Those `ids` that this rank holds, from its first: int64, on the CPU, as the host would have to wait for a GPU."""
    index = torch.tensor(ids, dtype=torch.int64) - first_id
    return index[(index >= 0) & (index < count)]
