"""The cluster's DNS: names of headless Services, which lead to pods. Ray's gRPC does not obey a hosts file."""

import signal
from pathlib import Path
from typing import Any

from tests.e2e.server import Process

Object = dict[str, Any]


class Dns:
    """dnsmasq on one address."""

    def __init__(self, folder: Path, address: str) -> None:
        self._names, self._known = folder / "names", ""
        self._names.touch()
        place = f"--listen-address={address}", "--bind-interfaces", "--user=root", "--pid-file="
        quiet = "--keep-in-foreground", "--no-resolv", "--no-hosts", "--conf-file=", "--log-facility=-"
        names = f"--addn-hosts={self._names}", "--local=/cluster.local/"
        self._server = Process("dnsmasq", *quiet, *place, *names)
        self._server.wait_for_line("started")

    def tell(self, services: list[Object], pods: list[Object]) -> None:
        """What there is now."""
        rows = [
            f"{pod['status']['podIP']} {name_of(service)}"
            for service in services
            for pod in pods
            if service["spec"].get("clusterIP") == "None" and leads_to(service, pod)
        ]
        if (text := "".join(f"{row}\n" for row in sorted(rows))) != self._known:
            self._known = text
            self._names.write_text(text)
            self._server.process.send_signal(signal.SIGHUP)

    def close(self) -> None:
        self._server.kill()


def leads_to(service: Object, pod: Object) -> bool:
    """Whether it selects a pod that has an address and does not end."""
    meta = pod["metadata"]
    chosen = service["spec"].get("selector", {"": ""}).items() <= meta.get("labels", {}).items()
    near = meta["namespace"] == service["metadata"]["namespace"] and "deletionTimestamp" not in meta
    return bool(chosen and near and "podIP" in pod["status"])


def name_of(service: Object) -> str:
    return f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc.cluster.local"
