"""One container, without a container runtime: processes of this machine in namespaces of their own.

It has the network of its pod's host, its own process ids, /etc, /var/cache, /dev/shm and /tmp, its volumes and its
environment. It shares the rest of the file system, so that its image is this machine; it runs as this user, without
limits of CPU or memory.
"""

import base64
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil

from tests.e2e.server import Process
from tests.hosts.net import Host
from tests.kubernetes.store import RealStore

Object = dict[str, Any]
BIN = Path(sys.executable).parent
KILLED = 128
MESSAGE_LINES = 80


class Container:
    """Runs as soon as it is made."""

    def __init__(self, store: RealStore, pod: Object, row: Object, host: Host, folder: Path, nameserver: str) -> None:
        self._store, self._pod, self.row = store, pod, row
        self._host, self._folder, self._nameserver = host, folder / row["name"], nameserver
        self._volumes = folder / "volumes"
        self._lock = threading.Lock()
        self._environment = {row["name"]: self._value(row) for row in row.get("env", [])}
        self._tmp = self._folder / "tmp"
        self._tmp.mkdir(parents=True, exist_ok=True)
        inside = "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", self._script()
        command = [*row.get("command", []), *row.get("args", [])]
        self._process: Process = host.run(*inside, "bash", *command, **self._path(), **self._environment)

    @property
    def ended(self) -> int | None:
        """The exit code as Kubernetes tells it."""
        code = self._process.process.poll()
        return KILLED - code if code is not None and code < 0 else code

    def log(self) -> str:
        with self._lock:
            return "".join(f"{line}\n" for line in self._process.said())

    def message(self) -> str:
        """What is left of a container that has failed."""
        asked = self.row.get("terminationMessagePolicy") == "FallbackToLogsOnError" and self.ended
        return "\n".join(self.log().splitlines()[-MESSAGE_LINES:])[-2048:] if asked else ""

    def succeeds(self, command: list[str], timeout_s: float) -> bool:
        """Whether a command inside does, within the time."""
        if (first := self._first()) is None:
            return False
        enter = "nsenter", f"--target={first}", "--mount", "--pid", "--net", "--"
        known = os.environ | self._path() | self._environment
        try:
            return not subprocess.run([*enter, *command], env=known, timeout=timeout_s, check=False).returncode
        except subprocess.TimeoutExpired:
            return False

    def terminate(self) -> None:
        """Tell the first process; it may not listen."""
        if (first := self._first()) is not None:
            os.kill(first, signal.SIGTERM)

    def kill(self) -> None:
        """All processes, with the first one."""
        self._process.process.kill()
        self._process.process.wait()

    def _first(self) -> int | None:
        """Process 1 of the container: the one child of `unshare`."""
        try:
            return next((child.pid for child in psutil.Process(self._process.process.pid).children()), None)
        except psutil.NoSuchProcess:
            return None

    def _path(self) -> dict[str, str]:
        return {"PATH": f"{BIN}:{os.environ['PATH']}", "TMPDIR": "/tmp"}

    def _value(self, row: Object) -> str:
        if (source := row.get("valueFrom")) is None:
            return str(row.get("value", ""))
        key = source["secretKeyRef"]
        secret = self._store.get("secrets", key["name"], self._pod["metadata"]["namespace"])
        return base64.b64decode(secret["data"][key["key"]]).decode()

    def _script(self) -> str:
        """What is mounted before the command begins. The name server is written into the container's own /etc."""
        own = shlex.quote(str(self._folder))
        names = f"nameserver {self._nameserver}\\noptions ndots:1\\n"
        lines = [
            "set -e",
            f"mkdir -p {own}/etc",
            f"mount -t tmpfs tmpfs {own}/etc",
            f"mkdir {own}/etc/upper {own}/etc/work",
            f"mount -t overlay overlay -o lowerdir=/etc,upperdir={own}/etc/upper,workdir={own}/etc/work /etc",
            f"rm -f /etc/resolv.conf; printf '{names}' > /etc/resolv.conf",
            "mount -t tmpfs tmpfs /var/cache",
            "mount -t tmpfs tmpfs /dev/shm",
            *(line for mount in self.row.get("volumeMounts", []) for line in self._mount(mount)),
            f"mount --rbind {own}/tmp /tmp",
            'exec "$@"',
        ]
        return "\n".join(lines)

    def _mount(self, mount: Object) -> list[str]:
        """Into the container's own /tmp before that is in its place: a volume may be in the machine's."""
        volume = next(row for row in self._pod["spec"]["volumes"] if row["name"] == mount["name"])
        path = Path(mount["mountPath"])
        target = shlex.quote(str(self._tmp / path.relative_to("/tmp") if path.is_relative_to("/tmp") else path))
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            size = volume["emptyDir"]["sizeLimit"].removesuffix("i")
            return [f"mount -t tmpfs -o size={size} tmpfs {target}"]
        source = shlex.quote(str(self._source(volume) / mount.get("subPath", "")))
        lines = [f"mkdir -p {target}", f"mount --bind {source} {target}"]
        return [*lines, *([f"mount -o remount,bind,ro {target}"] if mount.get("readOnly") else [])]

    def _source(self, volume: Object) -> Path:
        """The folder of a volume, filled where Kubernetes fills it."""
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        folder = self._volumes / str(volume["name"])
        folder.mkdir(parents=True, exist_ok=True)
        namespace = self._pod["metadata"]["namespace"]
        if (source := volume.get("configMap")) is not None:
            for name, text in self._store.get("configmaps", source["name"], namespace)["data"].items():
                (folder / name).write_text(text)
        elif (source := volume.get("secret")) is not None:
            data = self._store.get("secrets", source["secretName"], namespace)["data"]
            for row in source.get("items", [{"key": key, "path": key} for key in data]):
                (folder / row["path"]).write_bytes(base64.b64decode(data[row["key"]]))
        return folder
