"""How a cluster configuration is read, and the one check that every one passes, however it was made.

All that can be known without a cluster is checked, since KubeRay accepts a wrong resource and then only writes an event
about it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cluster.config.rules import complaints
from cluster.config.spec import ClusterSpec
from cluster.errors import SpecError
from serving.config import load_config
from serving.config.sources import explain, override_all, read_yaml
from serving.errors import ConfigError


def load_spec(path: Path, overrides: Sequence[str] = ()) -> ClusterSpec:
    """Read a cluster configuration and the serving configuration that it names, apply overrides, check all of it.

    Overrides are `section.key=value`; `serving.engine.max_running=8` reaches into the serving configuration. Raises
    `SpecError`, or `ConfigError` for a file that cannot be read, with one sentence that names the key.
    """
    tree = override_all(_with_serving(read_yaml(path), path), overrides)
    return make_spec(tree, where=str(path))


def make_spec(tree: Mapping[str, Any], where: str = "cluster configuration") -> ClusterSpec:
    """Check a tree whose `serving` is a tree as well. Raises `SpecError`."""
    try:
        spec = ClusterSpec.model_validate(tree)
    except ValidationError as error:
        raise SpecError(f"{where}: {explain(error, ClusterSpec)}") from error
    if (complaint := next(complaints(spec), None)) is not None:
        raise SpecError(f"{where}: {complaint}")
    return spec


def checked(spec: ClusterSpec, where: str = "cluster configuration") -> ClusterSpec:
    """An equal one, checked as if it were read now. Raises `SpecError`.

    pydantic looks neither at a copy nor at what is put together by hand, so whatever makes documents of a configuration
    begins here.
    """
    return make_spec(spec.model_dump(mode="json", warnings=False), where)


def dump_spec(spec: ClusterSpec) -> dict[str, Any]:
    """The whole tree, defaults included, as JSON can hold it; `make_spec` reads it back to an equal one."""
    return spec.model_dump(mode="json")


def _with_serving(tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The tree with the serving configuration's own in the place of its path."""
    named = tree.get("serving")
    if not isinstance(named, str):
        return dict(tree)
    file = path.parent / named
    if not file.is_file():
        raise SpecError(f"{path}: serving: there is no file {file}")
    serving = read_yaml(file)
    try:
        load_config(serving)
    except ConfigError as error:
        raise SpecError(f"{file}: {str(error).removeprefix('configuration: ')}") from error
    return {**tree, "serving": serving}
