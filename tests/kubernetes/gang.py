"""The gang of `tests.kube.laptop` on the real cluster."""

import time
from dataclasses import dataclass
from typing import Any

import httpx

from tests.kube.laptop import CONFIG, SETTINGS
from tests.kube.scene import condition_is
from tests.kubernetes.cluster import Cluster

Object = dict[str, Any]


@dataclass(frozen=True)
class Gang:
    """One gang's commands."""

    cluster: Cluster
    settings: tuple[str, ...] = SETTINGS

    def run(self, verb: str, *options: str, code: int | None = 0) -> str:
        """What the command says; it must end with that code, if one is named. Its time is printed."""
        begun = time.monotonic()
        done = self.cluster.gangway(verb, CONFIG, *options, settings=self.settings)
        print(f"{verb} {' '.join(options)}: {time.monotonic() - begun:.1f} s\n{done.stdout}")
        assert code in {None, done.returncode}, done.stdout
        return done.stdout

    @property
    def url(self) -> str:
        """Where the rendered Service leads: the one pod that it selects."""
        service = self.cluster.store.get("services", "smollm2-http", "default")
        selector = ",".join(f"{key}={value}" for key, value in service["spec"]["selector"].items())
        (pod,) = self.cluster.store.select("pods", "default", selector)
        return f"http://{pod['status']['podIP']}:{service['spec']['ports'][0]['port']}"

    def at_rest(self) -> bool:
        """Whether it answers, and Kubernetes takes all of its pods to be ready."""
        pods = self.cluster.store.select("pods", "default", "ray.io/is-ray-node=yes")
        ready = all(condition_is(pod, "Ready") and "deletionTimestamp" not in pod["metadata"] for pod in pods)
        return ready and httpx.get(f"{self.url}/readyz", timeout=10).is_success

    def pod_of_rank(self, rank: int) -> Object:
        ranks = httpx.get(f"{self.url}/v1/status", timeout=10).json()["ranks"]
        (address,) = [row["ip"] for row in ranks if row["rank"] == rank]
        return next(pod for pod in self.cluster.pods() if pod["status"].get("podIP") == address)
