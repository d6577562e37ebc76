"""What must hold of the paths in a configuration before it is sent to other processes, whose folders are others."""

from serving.config import Config
from serving.engine.checkpoint import open_checkpoint


def absolute_paths(config: Config) -> Config:
    """The same configuration with its relative paths counted from this process's working directory."""
    path = config.model.path.expanduser().absolute()
    model = config.model.model_copy(update={"path": path, "served_name": config.model.name})
    keys = config.security.api_keys_file
    security = config.security.model_copy(update={"api_keys_file": keys and keys.expanduser().absolute()})
    return config.model_copy(update={"model": model, "security": security})


def check_paths(config: Config, *, all_here: bool) -> None:
    """See that the model's files are whole, in milliseconds. Raises `ModelError`.

    A folder that does not exist is an error only if the ranks run `all_here`; it has to be on their nodes.
    """
    if all_here or config.model.path.exists():
        open_checkpoint(config.model.path)
