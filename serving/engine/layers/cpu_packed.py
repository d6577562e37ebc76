"""Layers whose weights are packed for the kernels: products, norms, the output head, the embedding tied to it.

They are made while the model has no weights; `loading.cpu_layers` writes down what each is to be made of.
"""

from typing import Any

import torch
from torch import Tensor, nn

from serving.engine.distributed.collectives import Collectives
from serving.engine.kernels import ops
from serving.engine.layers.vocabulary import OutputHead, ShardedEmbedding


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Parameter:
    """A parameter that has yet to be filled."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)


class PackedLinear(nn.Module):
    """A `ShardedLinear` whose weight is packed."""

    def __init__(
        self, weight: Tensor, bias: nn.Parameter | None, collectives: Collectives | None, threads: int
    ) -> None:
        """`weight`: [out, in], of which only shape and format count; the others as `ShardedLinear`'s."""
        super().__init__()
        self.outputs, self.inputs = weight.shape
        self.packed = empty(ops.packed_shape(self.outputs, self.inputs, weight.dtype), weight.dtype)
        self.bias = bias
        self.collectives = collectives
        self.threads = threads

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        rows = x.reshape(-1, self.inputs)
        if self.collectives is None:
            y = ops.product(rows, self.packed, self.outputs, self.bias, threads=self.threads)
        else:
            y = self.collectives.all_reduce(ops.product(rows, self.packed, self.outputs, None, threads=self.threads))
            if self.bias is not None:
                y += self.bias
        return y.view(*x.shape[:-1], self.outputs)


RMS_NORMS = {
    "LlamaRMSNorm": 0.0,
    "MistralRMSNorm": 0.0,
    "Qwen2RMSNorm": 0.0,
    "Qwen3RMSNorm": 0.0,
    "GraniteRMSNorm": 0.0,
    "Phi3RMSNorm": 0.0,
    "GlmRMSNorm": 0.0,
    "GemmaRMSNorm": 1.0,
    "Gemma2RMSNorm": 1.0,
    "Gemma3RMSNorm": 1.0,
}
"""Classes that compute x / rms(x) * (weight + offset), by the offset."""


def eps_of(norm: Any) -> float:
    """What one of these classes adds to the mean square."""
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)


class NativeRMSNorm(nn.Module):
    """Root-mean-square norm on the kernels."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return ops.rms_norm(x.contiguous(), self.weight, self.eps, self.offset)


class PackedHead(OutputHead):
    """An `OutputHead` whose weight is packed."""

    def __init__(self, head: OutputHead, threads: int) -> None:
        self.outputs, inputs = head.weight.shape
        packed = torch.empty(
            ops.packed_shape(self.outputs, inputs, head.weight.dtype), dtype=head.weight.dtype, device="meta"
        )
        super().__init__(packed, None, head.multiplier, head.softcap)
        self.bias = head.bias
        self.threads = threads

    def _products(self, hidden: Tensor) -> Tensor:
        return ops.product(hidden.contiguous(), self.weight, self.outputs, self.bias, threads=self.threads)


class PackedEmbedding(ShardedEmbedding):
    """A `ShardedEmbedding` that looks its rows up in the packed weight of the tied head."""

    def __init__(self, embedding: ShardedEmbedding) -> None:
        rows, width = embedding.weight.shape
        packed = torch.empty(
            ops.packed_shape(rows, width, embedding.weight.dtype), dtype=embedding.weight.dtype, device="meta"
        )
        super().__init__(packed, embedding.vocab, embedding.collectives, embedding.scale)

    def _lookup(self, rows: Tensor) -> Tensor:
        return ops.unpack_rows(self.weight, rows)
