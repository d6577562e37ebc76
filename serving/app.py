"""The local way through Ray's own command: `serve run serving.app:build config=configs/local.yaml`.

The application starts the group itself if none is registered, and takes it along when it is deleted. Its address is
Serve's own (`serve run` takes no port of ours): 127.0.0.1:8000 unless Serve was started otherwise.
"""

from pathlib import Path

from ray import serve

from serving.config import load_config
from serving.errors import ConfigError
from serving.runtime.deployment import build_application
from serving.runtime.preflight import absolute_paths, check_model_files, require_keys_for_limits


def build(args: dict[str, str]) -> serve.Application:
    """`config`: path of the configuration file; any `section.key=value` besides overrides it."""
    if "config" not in args:
        raise ConfigError("serving.app:build needs config=FILE, such as config=configs/local.yaml")
    overrides = [f"{key}={value}" for key, value in args.items() if key != "config"]
    config = absolute_paths(load_config(Path(args["config"]), overrides))
    require_keys_for_limits(config.security)
    check_model_files(config, all_here=False)
    return build_application(config, supervised=True)
