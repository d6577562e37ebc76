"""What can be said of a configuration before any process is started for it, in milliseconds."""

from pathlib import Path

from serving.config import Config, SecurityConfig
from serving.engine.loading.checkpoint import open_checkpoint
from serving.errors import ConfigError, OperatorError
from serving.generation_config import end_tokens
from serving.runtime.network import free_addresses
from serving.runtime.ray_cluster.haproxy_wrapper import at


def absolute_paths(config: Config) -> Config:
    """The same configuration with its relative paths counted from this process's working directory.

    The processes that it is sent to have others.
    """
    path = _absolute(config.model.path)
    model = config.model.model_copy(update={"path": path, "served_name": config.model.name})
    keys = config.security.api_keys_file
    security = config.security.model_copy(update={"api_keys_file": keys and _absolute(keys)})
    return config.model_copy(update={"model": model, "security": security})


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:
        raise OperatorError(f"{path}: this user has no home; name the whole path, or set HOME") from error


def require_keys_for_limits(security: SecurityConfig) -> None:
    """Raise `ConfigError` when there are limits per key, and no keys by which callers are told from each other."""
    if security.limits_keys and security.api_keys_file is None:
        raise ConfigError("security: limits per key need security.api_keys_file, by which callers are told apart")


def check_model_files(config: Config, *, all_here: bool) -> None:
    """See that the model's files are whole and can be read. Raises `ModelError`.

    A folder that does not exist is an error only if the ranks run `all_here`; it has to be on their nodes.
    """
    if all_here or config.model.path.exists():
        open_checkpoint(config.model.path)
        end_tokens(config.model.path)


def require_free_port(host: str, port: int) -> None:
    """Raise `OperatorError` when nothing could listen at this address."""
    try:
        free_addresses(host, port)
    except OSError as error:
        raise OperatorError(
            f"cannot listen on {at(host, port)}: {error.strerror}; set http.host to an address of this machine "
            "and http.port to a free one"
        ) from error
