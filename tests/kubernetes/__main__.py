"""`make test-kube`, or `python -m tests.kubernetes [OPTIONS OF PYTEST]`: gets what is needed, then runs the tests.

What each command says and how long it takes is printed. Kubernetes' programs are built once, outside the tree:
about 12 minutes on two cores.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.hosts.net import why_not

VERSION = "1.37.2"
HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
PACKAGES = {"etcd": "etcd-server", "dnsmasq": "dnsmasq-base"}
"""Programs, and where Debian has them."""


def main() -> int:
    """Raises SystemExit with one sentence where something is missing."""
    if (reason := why_not()) is not None:
        sys.exit(f"make test-kube plays nodes in network namespaces: {reason}")
    if any(Path(place).is_relative_to("/tmp") for place in (HERE, sys.prefix)):
        sys.exit("make test-kube gives every pod a /tmp of its own: the project must not be there")
    if shutil.which("go") is None:
        sys.exit("make test-kube builds Kubernetes from its Go module, and there is no `go` on PATH")
    _install([package for program, package in PACKAGES.items() if shutil.which(program) is None])
    folder = CACHE / "gangway" / f"kubernetes-{VERSION}"
    subprocess.run([HERE / "build.sh", VERSION, folder], check=True)
    command = [sys.executable, "-m", "pytest", "-s", str(HERE), *sys.argv[1:]]
    return subprocess.run(command, env=os.environ | {"GANGWAY_KUBERNETES": str(folder)}, check=False).returncode


def _install(packages: list[str]) -> None:
    if not packages:
        return
    if shutil.which("apt-get") is None:
        sys.exit(f"make test-kube needs what Debian has in {' and '.join(packages)}")
    subprocess.run(["apt-get", "-qq", "update"], check=True)
    quietly = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "-qq", "install", "--no-install-recommends", *packages], env=quietly, check=True)


if __name__ == "__main__":
    sys.exit(main())
