"""A step's plan while the scheduler makes it: who computes how many tokens, and what the ranks must be told first."""

from dataclasses import dataclass, field

from serving.engine.scheduling.request import Request
from serving.messages import NewSequence


@dataclass(slots=True)
class PlanBuilder:
    """A plan in the making."""

    budget: int
    """Tokens that prefill may still take; those of all decodes are set aside."""
    preempted: list[int] = field(default_factory=list)
    new: list[NewSequence] = field(default_factory=list)
    placed: dict[int, list[int]] = field(default_factory=dict)
    decodes: list[tuple[Request, int]] = field(default_factory=list)
    prefills: list[tuple[Request, int]] = field(default_factory=list)
    """Request and the number of tokens that it computes."""

    def prefill(self, request: Request, count: int) -> None:
        self.prefills.append((request, count))
        self.budget -= count
