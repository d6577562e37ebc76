"""Whether a model needs several nodes at all, and what it costs if it does. Works offline, from `config.json` alone.

Memory is an estimate (see `capacity`), and so are the times, for which the network is assumed and not measured.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.errors import SpecError
from cluster.planning.gpus import NodeKind, find_gpu, parse_node
from cluster.planning.memory import GIB, Load, Memory, fits, kv_replicas, rank_memory, smallest_tp
from cluster.planning.model_shape import ModelShape, read_shape

Verdict = Literal["one GPU", "one node", "several nodes", "does not fit"]

TCP_CALL_US = (50, 100)
RDMA_CALL_US = (10, 20)
"""Time of one small all-reduce over a network, in microseconds: an assumption."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What tensor parallelism sends for each token that is decoded."""

    all_reduces: int
    """Two a layer, and one for the embedding, which is split by vocabulary."""

    gathers: int
    """One, in which ranks agree on the token."""

    bytes_per_gpu: int
    """What each GPU sends in a ring."""

    tcp_ms: tuple[float, float]
    """Waiting for the network alone, from and to, over TCP."""

    rdma_ms: tuple[float, float]
    """The same over RDMA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The answer, with what it was worked out from."""

    model: str
    shape: ModelShape
    node: NodeKind
    load: Load
    verdict: Verdict
    smallest_tp: int | None
    """The fewest ranks of which each fits its GPU."""

    tp: int | None
    """The ranks to run with: whole nodes, where several are needed."""

    nodes: int | None
    memory: Memory | None
    """Of the fullest rank, with `tp` ranks."""

    traffic: Traffic | None
    """What crosses the network; None where nothing does."""

    notes: tuple[str, ...] = ()
    """What else should be known."""

    @property
    def single_node(self) -> bool:
        """Whether one node is enough."""
        return self.verdict in {"one GPU", "one node"}

    def json(self) -> dict[str, Any]:
        """All of it, as JSON can hold it; memory in bytes."""
        tree = asdict(self)
        tree["shape"]["parameters"] = self.shape.parameters
        if self.memory is not None:
            tree["memory"]["total"] = self.memory.total
        return {"headline": self.headline(), **tree}

    def headline(self) -> str:
        """The verdict as a sentence."""
        if self.verdict == "does not fit":
            return (
                f"This model does not fit: it can be split over {self.shape.heads} ranks at most, one for each "
                f"attention head, and no number of nodes of {self.node.text} holds it with this batch and context."
            )
        if self.single_node:
            gpus = f"{self.tp} GPU" + ("s" if self.tp != 1 else "")
            return (
                f"One node is enough: use plain Ray Serve on one node with {gpus} a replica, and more replicas for "
                "more requests. Several nodes would add network latency, and would all restart when one fails."
            )
        return f"Several nodes are needed: {self.nodes} nodes of {self.node.text}, tensor_parallel_size {self.tp}."

    def text(self) -> str:
        """For people; the verdict comes first."""
        return "\n".join(
            [self.headline(), "", *self._facts(), *self._memory_lines(), *self._traffic_lines(), *self._notes()]
        )

    def _facts(self) -> list[str]:
        shape, load = self.shape, self.load
        fewest = "none" if self.smallest_tp is None else str(self.smallest_tp)
        return [
            f"model            {self.model}",
            f"parameters       {shape.parameters:,} ({_gib(shape.parameters * load.bytes_each)} in {load.dtype})",
            f"heads            {shape.heads}, of keys and values {shape.kv_heads}; {shape.layers} layers",
            f"node             {self.node.text}",
            f"load             {load.batch} requests of {load.context} tokens, {load.step_tokens} tokens a step",
            f"smallest tp      {fewest}",
        ]

    def _memory_lines(self) -> list[str]:
        if self.memory is None:
            return []
        usable = self.load.utilisation * self.node.gpu_memory_gib
        parts = [(name, getattr(self.memory, name)) for name in ("weights", "kv", "activations", "overhead", "total")]
        lines = [f"  {name:<14} {_gib(size):>10}" for name, size in parts]
        return [
            "",
            f"memory of the fullest rank, tp={self.tp} (estimate)",
            *lines,
            f"  {'may use':<14} {usable:>6.1f} GiB",
        ]

    def _traffic_lines(self) -> list[str]:
        traffic = self.traffic
        if traffic is None:
            return []
        tcp, rdma = traffic.tcp_ms, traffic.rdma_ms
        megabytes = traffic.bytes_per_gpu / 1e6
        return [
            "",
            "network, for each token that is decoded",
            f"  {traffic.all_reduces} all-reduces and {traffic.gathers} gather, {megabytes:.1f} MB from each GPU",
            f"  waiting (estimate): {tcp[0]:.0f} to {tcp[1]:.0f} ms over TCP, {rdma[0]:.1f} to {rdma[1]:.1f} over RDMA",
        ]

    def _notes(self) -> list[str]:
        return ["", *(f"note: {note}" for note in self.notes)] if self.notes else []


def plan_model(source: Path, *, gpu: str | None = None, node: str | None = None, load: Load | None = None) -> Plan:
    """Plan for the model in a folder (or a `config.json`) on nodes of a GPU by name, "8x80", or both ("4x80" of it).

    Raises `SpecError` for a GPU or node that is not known, `ShapeError` for a model that cannot be read.
    """
    shape = read_shape(source)
    folder = source if source.is_dir() else source.parent
    return make_plan(shape, _node_kind(gpu, node), load or Load(), model=folder.absolute().name)


def make_plan(shape: ModelShape, node: NodeKind, load: Load, *, model: str = "") -> Plan:
    """Plan for a shape."""
    tp, nodes, verdict = _choose(shape, node, load)
    return Plan(
        model=model or shape.model_type,
        shape=shape,
        node=node,
        load=load,
        verdict=verdict,
        smallest_tp=smallest_tp(shape, node.gpu_memory_gib, load),
        tp=tp,
        nodes=nodes,
        memory=None if tp is None else rank_memory(shape, tp, load),
        traffic=traffic(shape, tp, load) if tp is not None and nodes is not None and nodes > 1 else None,
        notes=tuple(misfits(shape, tp)) if tp is not None else (),
    )


def misfits(shape: ModelShape, tp: int) -> list[str]:
    """What `tp` ranks cannot share equally: it works, at a cost."""
    found = []
    replicas = kv_replicas(shape, tp)
    if replicas > 1:
        found.append(f"each of the {shape.kv_heads} KV heads is held by {replicas} ranks: more KV memory in all")
    if shape.heads % tp or shape.kv_heads * replicas % tp:
        found.append(f"{shape.heads} heads on {tp} ranks are not equal shares: the fullest rank sets the pace")
    elif shape.ffn % tp:
        found.append(f"a feed-forward width of {shape.ffn} on {tp} ranks is not shared equally")
    return found


def traffic(shape: ModelShape, tp: int, load: Load) -> Traffic:
    """What crosses the network for one token: a ring sends 2 (tp - 1) / tp of each sum from every GPU."""
    sums = 2 * shape.layers + 1
    calls = sums + 1
    return Traffic(
        all_reduces=sums,
        gathers=1,
        bytes_per_gpu=int(sums * shape.hidden * load.bytes_each * 2 * (tp - 1) / tp),
        tcp_ms=(calls * TCP_CALL_US[0] / 1000, calls * TCP_CALL_US[1] / 1000),
        rdma_ms=(calls * RDMA_CALL_US[0] / 1000, calls * RDMA_CALL_US[1] / 1000),
    )


def _choose(shape: ModelShape, node: NodeKind, load: Load) -> tuple[int | None, int | None, Verdict]:
    """Ranks, nodes, verdict: inside a node the next equal share that fits, beyond it whole nodes."""

    def fitting(counts: Iterable[int]) -> int | None:
        return next((tp for tp in counts if fits(shape, tp, node.gpu_memory_gib, load)), None)

    inside = range(1, min(node.gpus, shape.heads) + 1)
    tp = fitting(tp for tp in inside if shape.heads % tp == 0) or fitting(inside)
    if tp is not None:
        return tp, 1, "one GPU" if tp == 1 else "one node"
    tp = fitting(range(2 * node.gpus, shape.heads + 1, node.gpus))
    return (tp, tp // node.gpus, "several nodes") if tp is not None else (None, None, "does not fit")


def _node_kind(gpu: str | None, node: str | None) -> NodeKind:
    if node is not None:
        described = parse_node(node)
        return described if gpu is None else NodeKind(gpu, described.gpus, described.gpu_memory_gib)
    if gpu is None:
        raise SpecError("name a GPU, such as --gpu H100, or describe a node, such as --node 8x80")
    return find_gpu(gpu)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
