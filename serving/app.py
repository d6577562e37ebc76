"""The local way through Ray's own command: `serve run serving.app:build config=configs/local.yaml`.

The application starts the group itself if none is registered, and takes it along when it is deleted. Its address is
Serve's own (`serve run` takes no port of ours): 127.0.0.1:8000 unless Serve was started otherwise.
"""

from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.context import _get_global_client

from serving.config import load_config
from serving.errors import ConfigError
from serving.runtime.command.preflight import absolute_paths, check_model_files, require_keys_for_limits
from serving.runtime.deployment import Gateway, build_application
from serving.runtime.group.supervisor import ensure_supervisor


class SupervisedGateway(Gateway):
    """Starts the group from here when there is none."""

    def __init__(self, settings: dict[str, Any]) -> None:
        ensure_supervisor(load_config(settings), serve.get_replica_context().app_name)
        super().__init__(settings, host=_serves_own_host())


def _serves_own_host() -> str:
    """Where Serve listens, whatever the configuration says: it was started by somebody else."""
    return str(_get_global_client().http_config.host)


def build(args: dict[str, str]) -> serve.Application:
    """`config`: path of the configuration file; any `section.key=value` besides overrides it."""
    if "config" not in args:
        raise ConfigError("serving.app:build needs config=FILE, such as config=configs/local.yaml")
    overrides = [f"{key}={value}" for key, value in args.items() if key != "config"]
    config = absolute_paths(load_config(Path(args["config"]), overrides))
    require_keys_for_limits(config.security)
    check_model_files(config, all_here=False)
    return build_application(config, gateway=SupervisedGateway)
