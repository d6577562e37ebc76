"""A real Kubernetes control plane: etcd, API server, controller manager and scheduler, as processes of this machine.

All listen on one address, which nobody else has. There is one user, who may do everything.
"""

import secrets
from pathlib import Path
from typing import Any, Self

import trustme
import yaml

from tests.e2e.server import Process, eventually
from tests.kube.resources import load_definition
from tests.kube.server import KUBERAY
from tests.kubernetes.store import RealStore

SERVICES = "10.32.0.0/16"
"""Not of the addresses that networks of hosts are given."""
NAME = "kubernetes.default.svc"


class ControlPlane:
    """`programs`: the folder where Kubernetes' programs were built. Start it as a context manager."""

    def __init__(self, programs: Path, folder: Path, address: str) -> None:
        self._programs, self._folder, self.address = programs, folder, address
        self._running: list[Process] = []
        self.url = f"https://{address}:6443"
        self.certificate, self.key = folder / "ca.pem", folder / "server.key"
        self.chain = folder / "server.pem"
        self.kubeconfig = folder / "kubeconfig"
        self._token = secrets.token_hex(16)

    def __enter__(self) -> Self:
        try:
            self._write_files()
            self._start_etcd()
            self.store = RealStore(self.url, self._token, self.certificate)
            self._start_api_server()
            eventually(self._is_ready)
            self._start("kube-controller-manager", *self._client(), *self._controllers())
            self._start("kube-scheduler", *self._client(), f"--bind-address={self.address}", "--leader-elect=false")
            for plural in KUBERAY:
                self.store.call("POST", self._definitions, load_definition(plural, "ray.io"))
            eventually(self._has_defaults)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """The API server before what it stands on."""
        self.store.close()
        while self._running:
            self._running.pop().kill()

    _definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"

    def _write_files(self) -> None:
        authority = trustme.CA()
        server = authority.issue_cert(self.address, NAME)
        authority.cert_pem.write_to_path(str(self.certificate))
        server.private_key_pem.write_to_path(str(self.key))
        server.cert_chain_pems[0].write_to_path(str(self.chain))
        (self._folder / "tokens").write_text(f'{self._token},tester,tester,"system:masters"\n')
        named: dict[str, Any] = {
            "cluster": {"server": self.url, "certificate-authority": str(self.certificate)},
            "user": {"token": self._token},
            "context": {"cluster": "real", "user": "real", "namespace": "default"},
        }
        rows = {f"{kind}s": [{"name": "real", kind: row}] for kind, row in named.items()}
        config = {"apiVersion": "v1", "kind": "Config", "current-context": "real", **rows}
        self.kubeconfig.write_text(yaml.safe_dump(config))

    def _start(self, program: str | Path, *arguments: str) -> None:
        path = self._programs / program if isinstance(program, str) else program
        self._running.append(Process(path, *arguments))

    def _start_etcd(self) -> None:
        client, peer = f"http://{self.address}:2379", f"http://{self.address}:2380"
        listen = f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}"
        self._start(Path("etcd"), f"--data-dir={self._folder / 'etcd'}", *listen)

    def _start_api_server(self) -> None:
        flags = {
            "etcd-servers": f"http://{self.address}:2379",
            "bind-address": self.address,
            "advertise-address": self.address,
            "service-cluster-ip-range": SERVICES,
            "service-account-issuer": f"https://{NAME}",
            "service-account-signing-key-file": self.key,
            "service-account-key-file": self.key,
            "tls-cert-file": self.chain,
            "tls-private-key-file": self.key,
            "client-ca-file": self.certificate,
            "token-auth-file": self._folder / "tokens",
            "authorization-mode": "Node,RBAC",
            "kubelet-preferred-address-types": "InternalIP",
        }
        self._start("kube-apiserver", *(f"--{name}={value}" for name, value in flags.items()))

    def _client(self) -> list[str]:
        return [f"--kubeconfig={self.kubeconfig}"]

    def _controllers(self) -> list[str]:
        """All but the one of Deployments: KubeRay's operator, which has one, is played by the tests and has no pod."""
        keys = f"--service-account-private-key-file={self.key}", f"--root-ca-file={self.certificate}"
        place = f"--bind-address={self.address}", "--leader-elect=false"
        return ["--controllers=*,-deployment-controller", *keys, *place]

    def _is_ready(self) -> bool:
        self._fail_if_ended()
        return self.store.is_ready()

    def _has_defaults(self) -> bool:
        """What pods need, and what was defined, are there."""
        self._fail_if_ended()
        rows = self.store.call("GET", self._definitions)["items"]
        told = [condition for row in rows for condition in row["status"].get("conditions") or []]
        established = [row for row in told if (row["type"], row["status"]) == ("Established", "True")]
        account = self.store.find("serviceaccounts", "default", "default")
        return account is not None and len(established) == len(KUBERAY)

    def _fail_if_ended(self) -> None:
        for process in self._running:
            assert process.process.poll() is None, "\n".join(process.said()[-20:])
