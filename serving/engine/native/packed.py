"""Layers whose weights are packed for the kernels: products, norms, the output head, the embedding tied to it."""

from torch import Tensor, nn

from serving.engine.linear import ShardedLinear
from serving.engine.native import ops
from serving.engine.vocabulary import OutputHead, ShardedEmbedding


class PackedLinear(nn.Module):
    """A `ShardedLinear` whose weight is packed for the kernels."""

    def __init__(self, linear: ShardedLinear, threads: int) -> None:
        super().__init__()
        self.outputs, self.inputs = linear.weight.shape
        self.packed = nn.Parameter(ops.pack(linear.weight), requires_grad=False)
        self.bias = linear.bias
        self.collectives = linear.collectives
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


class NativeRMSNorm(nn.Module):
    """Root-mean-square norm on the kernels."""

    def __init__(self, weight: nn.Parameter, eps: float, offset: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps
        self.offset = offset

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., H]."""
        return ops.add_rms_norm(x.contiguous(), None, self.weight, self.eps, self.offset)


class PackedHead(OutputHead):
    """An `OutputHead` whose weight is packed."""

    def __init__(self, head: OutputHead, packed: nn.Parameter, threads: int) -> None:
        super().__init__(packed, head.bias, head.multiplier, head.softcap)
        self.weight = packed
        self.outputs = len(head.weight)
        self.threads = threads

    def _products(self, hidden: Tensor) -> Tensor:
        return ops.product(hidden.contiguous(), self.weight, self.outputs, self.bias, threads=self.threads)


class PackedEmbedding(ShardedEmbedding):
    """A `ShardedEmbedding` that looks its rows up in the packed weight of the tied head."""

    def __init__(self, embedding: ShardedEmbedding, packed: nn.Parameter) -> None:
        super().__init__(packed, embedding.vocab, embedding.collectives, embedding.scale)
        self.weight = packed

    def _lookup(self, rows: Tensor) -> Tensor:
        return ops.unpack_rows(self.weight, rows)
