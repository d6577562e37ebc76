"""A CustomResourceDefinition's schema as plain JSON schema, in which a field that it does not know is an error."""

import copy
from dataclasses import dataclass
from typing import Any

import jsonschema  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Definition:
    """The served version of one kind."""

    kind: str
    validator: Any

    def problems(self, document: dict[str, Any]) -> list[str]:
        """Each a path and what is wrong there."""
        return [
            f"{'.'.join(map(str, error.absolute_path))}: {error.message}"
            for error in self.validator.iter_errors(document)
        ]


def read_definition(document: dict[str, Any], version: str = "v1") -> Definition:
    """The definition of a kind, at one version."""
    versions = {entry["name"]: entry for entry in document["spec"]["versions"]}
    schema = _translated(copy.deepcopy(versions[version]["schema"]["openAPIV3Schema"]))
    for field in ("apiVersion", "kind", "metadata"):
        schema["properties"][field] = {}
    return Definition(document["spec"]["names"]["kind"], jsonschema.Draft202012Validator(schema))


def _translated(schema: dict[str, Any]) -> dict[str, Any]:
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    for name, child in schema.get("properties", {}).items():
        schema["properties"][name] = _translated(child)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            schema[key] = _translated(schema[key])
    closed = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
    if closed and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    if schema.pop("nullable", False) and "type" in schema:
        schema["type"] = [schema["type"], "null"]
    return schema
