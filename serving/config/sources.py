"""How any tree of settings is read: a YAML file, overrides of single keys, and complaints as one sentence."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from serving.addresses import shown_in
from serving.errors import ConfigError


class Section(BaseModel):
    """A frozen group of settings that refuses keys it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `ConfigError` for anything else, naming the file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from error
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {_yaml_problem(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `model:`, found {type(tree).__name__}")
    return tree


def _yaml_problem(error: yaml.YAMLError) -> str:
    """PyYAML's complaint in one line; its text has several, and begins with what it was doing."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return str(error).splitlines()[0]


def override_all(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `tree` with each `section.key=value` applied in turn. Raises `ConfigError` for another form."""
    changed = dict(tree)
    for override in overrides:
        changed = _override(changed, override)
    return changed


def _override(tree: Mapping[str, Any], override: str) -> dict[str, Any]:
    """A copy of `tree` with one `a.b=c` applied; the value is read as YAML."""
    dotted, separator, text = override.partition("=")
    keys, given = dotted.split("."), shown_in(override)
    if not separator or not all(keys):
        raise ConfigError(f"--set {given}: expected section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {given}: not a YAML value: {_yaml_problem(error)}") from error
    return _with_value(tree, keys, value, given)


def _with_value(tree: Mapping[str, Any], keys: Sequence[str], value: object, override: str) -> dict[str, Any]:
    head, *rest = keys
    if not rest:
        return {**tree, head: value}
    section = {} if tree.get(head) is None else tree[head]
    if not isinstance(section, Mapping):
        raise ConfigError(f"--set {override}: {head} is not a section")
    return {**tree, head: _with_value(section, rest, value, override)}


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """The first complaint about a tree of `root` as a sentence; unknown keys come first, as a key that is missing may
    be one misspelt.
    """
    first = min(error.errors(), key=lambda complaint: complaint["type"] != "extra_forbidden")
    location = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        known = _known_keys(root, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {'.'.join(location)}; {hint}"
    if first["type"] == "model_type":
        return f"{'.'.join(location)} is a section: its keys stand beneath it"
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(location)}: {message}" if location else message


def _known_keys(root: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Keys of the section at `location`, through lists, mappings and optional sections."""
    section = root
    for part in location:
        if part in section.model_fields:
            section = _section_of(section.model_fields[part].annotation) or section
    return list(section.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that an annotation holds: itself, or in a list, a mapping or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section_of(inner))), None)
