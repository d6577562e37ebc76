import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from serving.config import Config
from serving.runtime.ray_cluster.environment import behind_own_proxy, cluster_address, haproxy_settings, ray_environment
from tests.e2e.server import eventually, free_port
from tests.gateway.conftest import make_config

NICE = """
import os
from serving.runtime.ray_cluster.environment import ray_environment
with ray_environment(None, embedded=True):
    import ray
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    print(ray.get(ray.remote(lambda: os.nice(0)).remote()))
"""


def config(host: str = "127.0.0.1") -> Config:
    """On a free port."""
    return make_config(f"http.host={host}", f"http.port={free_port()}", "security.insecure=true")


def test_an_address_that_is_named_wins_over_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address("10.0.0.2:6379") == "10.0.0.2:6379"
    assert cluster_address(None) == "10.0.0.1:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_address(None) is None


def test_what_the_user_has_set_stays_and_the_rest_is_added() -> None:
    environment = {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    with ray_environment(config(), embedded=True, environment=environment):
        assert environment["RAY_SERVE_ENABLE_HA_PROXY"] == "0"
        assert environment["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_cluster_of_someone_else_keeps_its_own_proxy() -> None:
    environment: dict[str, str] = {}
    with ray_environment(config(), embedded=False, environment=environment):
        assert "RAY_SERVE_ENABLE_HA_PROXY" not in environment


def test_rays_workers_on_an_embedded_cluster_make_way_for_nobody() -> None:
    own = os.nice(0)
    told = subprocess.run([sys.executable, "-c", NICE], capture_output=True, text=True, check=True, timeout=120)
    assert told.stdout.split() == [str(own)]


def test_the_files_of_an_embedded_cluster_are_private_and_go_with_it() -> None:
    environment: dict[str, str] = {}
    with ray_environment(config(), embedded=True, environment=environment):
        folder = Path(environment["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent
        assert folder.stat().st_mode & 0o077 == 0
    assert not folder.exists()


def test_haproxys_sockets_have_paths_that_it_takes_whatever_the_temporary_folder_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    environment: dict[str, str] = {}
    with ray_environment(config(), embedded=True, environment=environment):
        for name in ("RAY_SERVE_HAPROXY_SOCKET_PATH", "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"):
            socket = Path(environment[name])
            assert socket.parent.stat().st_mode & 0o077 == 0
            assert len(str(socket.parent / ("n" * 56) / socket.name)) <= 97


def test_haproxy_opens_its_statistics_to_this_machine_only(tmp_path: Path) -> None:
    command = haproxy_settings(tmp_path, "/bin/echo", config())["RAY_SERVE_HAPROXY_BINARY_PATH"]
    file = tmp_path / "haproxy.cfg"
    file.write_text("frontend a\n    bind :9101\n    bind 10.0.0.1:8000\nlisten stats\n  bind *:8404\n")
    done = subprocess.run([command, "-db", "-f", str(file)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["-dS", "-db", "-f", str(file)]
    binds = [line.strip() for line in file.read_text().splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:9101", "bind 10.0.0.1:8000", "bind 127.0.0.1:8404"]


def test_serve_itself_listens_on_loopback_only_where_our_wrapper_starts_the_proxy(tmp_path: Path) -> None:
    environment: dict[str, str] = {}
    assert not behind_own_proxy(environment)
    with ray_environment(config("0.0.0.0"), embedded=True, environment=environment):
        assert behind_own_proxy(environment)
        assert not behind_own_proxy(environment | {"RAY_SERVE_ENABLE_HA_PROXY": "0"})
        assert not behind_own_proxy(environment | {"RAY_SERVE_HAPROXY_BINARY_PATH": str(tmp_path / "haproxy")})


def test_a_batch_job_opens_no_port_and_needs_none() -> None:
    environment: dict[str, str] = {}
    with ray_environment(None, embedded=True, environment=environment) as folder:
        assert folder is None
        assert not behind_own_proxy(environment)


def test_haproxy_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    script = tmp_path / "haproxy-that-sleeps"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o700)
    command = haproxy_settings(tmp_path, str(script), config())["RAY_SERVE_HAPROXY_BINARY_PATH"]
    starter = (
        f"import subprocess, time; print(subprocess.Popen([{command!r}, '1000']).pid, flush=True); time.sleep(1000)"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        proxy = psutil.Process(int(parent.stdout.readline()))
        eventually(lambda: proxy.name() == "sleep", 30)
        parent.kill()
    assert not psutil.wait_procs([proxy], timeout=30)[1]


def test_two_clusters_on_a_machine_get_ports_and_files_of_their_own(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
    first, second = (haproxy_settings(folder, "/bin/echo", config()) for folder in folders)
    fixed = {
        "GANGWAY_MAX_BODY_BYTES",
        "RAY_SERVE_ENABLE_HA_PROXY",
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "RAY_SERVE_HAPROXY_NBTHREAD",
        "RAY_SERVE_HAPROXY_MAXCONN",
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
    }
    assert {key for key in first if first[key] == second[key]} == fixed
