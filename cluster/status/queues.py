"""What a queue allows, against what a whole gang asks for. Pure; `doctor` and `diagnosis` share it.

A Volcano Queue has a `capability`; a Kueue LocalQueue leads to a ClusterQueue with quotas for each flavor of nodes, of
which the sum is taken: that is the most it can be. What a cohort lends without a limit is not counted, so nothing is
said there.
"""

from collections.abc import Iterator, Mapping
from fractions import Fraction

from cluster.k8s.kinds import Manifest
from cluster.k8s.quantity import parse_quantity

Amounts = Mapping[str, Fraction]


def shortages(queue: Manifest | None, wanted: Amounts) -> list[str]:
    """A sentence for each resource of which the queue could never give enough; none where its limits are not known."""
    if queue is None:
        return []
    allowed = dict(_allowed(queue))
    name = f"{queue['kind']} {queue['metadata']['name']}"
    return [
        f"{name} allows {shown(allowed[resource])} of {resource}, and the gang asks for {shown(amount)}"
        for resource, amount in wanted.items()
        if resource in allowed and allowed[resource] < amount
    ]


def shown(amount: Fraction) -> str:
    """As people write it: bytes in GiB from one on, the rest as a number."""
    return f"{float(amount / 2**30):g}Gi" if amount >= 2**30 else f"{float(amount):g}"


def _allowed(queue: Manifest) -> Iterator[tuple[str, Fraction]]:
    spec = queue.get("spec") or {}
    if queue["kind"] != "ClusterQueue":
        for resource, amount in (spec.get("capability") or {}).items():
            yield resource, parse_quantity(str(amount))
        return
    borrows = bool(spec.get("cohort") or spec.get("cohortName"))
    for group in spec.get("resourceGroups") or []:
        for resource in group.get("coveredResources") or []:
            quotas = [q for flavor in group["flavors"] for q in flavor["resources"] if q["name"] == resource]
            if not borrows or all("borrowingLimit" in quota for quota in quotas):
                yield resource, sum((_quota(quota) for quota in quotas), Fraction())


def _quota(quota: Manifest) -> Fraction:
    return parse_quantity(str(quota["nominalQuota"])) + parse_quantity(str(quota.get("borrowingLimit", "0")))
