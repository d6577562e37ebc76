"""Whether a serving configuration suits a model and its GPUs, as sentences. Estimates, see `capacity`."""

from dataclasses import asdict, dataclass

from cluster.planning.memory import GIB, Load, configured_memory, fits
from cluster.planning.model_shape import ModelShape
from cluster.planning.plan import Plan, misfits
from serving.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What is to be said about one configuration."""

    problems: list[str]
    notes: list[str]

    def json(self) -> dict[str, list[str]]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        told = [*(f"problem: {text}" for text in self.problems), *(f"note: {text}" for text in self.notes)]
        return told or ["it fits"]


def fit(config: Config, plan: Plan) -> Fit:
    """A configuration held against the model and nodes of a plan."""
    node = plan.node
    return Fit(
        problems=fit_problems(config, plan.shape, node.gpu_memory_gib),
        notes=fit_notes(config, plan.shape, node.gpu_memory_gib, node.gpus),
    )


def fit_problems(config: Config, shape: ModelShape, gpu_memory_gib: float) -> list[str]:
    """What makes it impossible; empty when nothing does. `gpu_memory_gib`: memory of one GPU."""
    tp = config.parallel.tensor_parallel_size
    if tp > shape.heads:
        return [f"parallel.tensor_parallel_size is {tp}, but the model has {shape.heads} attention heads"]
    memory = configured_memory(shape, config)
    if memory.total > gpu_memory_gib * GIB:
        return [
            f"a rank needs {memory.total / GIB:.1f} GiB ({memory.weights / GIB:.1f} of them weights, "
            f"engine.kv_cache_gib {config.engine.kv_cache_gib:g}), but a GPU has {gpu_memory_gib:g}"
        ]
    return []


def fit_notes(config: Config, shape: ModelShape, gpu_memory_gib: float, gpus_per_node: int) -> list[str]:
    """What works, at a cost: unequal shares, repeated KV heads, more nodes than are needed."""
    tp = config.parallel.tensor_parallel_size
    if tp > shape.heads:
        return []
    found = misfits(shape, tp)
    load = Load(dtype=config.model.dtype, step_tokens=config.engine.max_batched_tokens)
    if tp > gpus_per_node and fits(shape, min(gpus_per_node, shape.heads), gpu_memory_gib, load):
        found.append(
            f"one node is enough: {gpus_per_node} GPUs hold the model, so plain Ray Serve on one node is simpler"
        )
    return found
