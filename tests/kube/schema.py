"""Structural schemas of custom resources: defaults, validation with field paths, and unknown fields.

Covers every keyword that KubeRay's definitions use except `x-kubernetes-validations` (CEL rules) and `format`.
"""

import copy
import re
from typing import Any

Schema = dict[str, Any]
Cause = tuple[str, str]

TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
}


def with_defaults(value: Any, schema: Schema) -> Any:
    """A copy of `value` in which absent fields have the schema's defaults, as the server does before validating."""
    if isinstance(value, dict):
        filled = dict(value)
        for name, child in schema.get("properties", {}).items():
            if name not in filled and "default" in child:
                filled[name] = copy.deepcopy(child["default"])
        return {name: with_defaults(item, child_of(schema, name) or {}) for name, item in filled.items()}
    if isinstance(value, list):
        return [with_defaults(item, schema.get("items", {})) for item in value]
    return value


def child_of(schema: Schema, name: str) -> Schema | None:
    """The schema of one field; None where the field is unknown."""
    child = schema.get("properties", {}).get(name)
    if child is not None:
        return dict(child)
    extra = schema.get("additionalProperties")
    if isinstance(extra, dict):
        return extra
    if extra is True or schema.get("x-kubernetes-preserve-unknown-fields") or not schema:
        return {}
    return None


def unknown_fields(value: Any, schema: Schema, path: str = "") -> list[str]:
    """Paths of fields that the schema does not know and would prune."""
    if isinstance(value, list):
        each = (unknown_fields(item, schema.get("items", {}), f"{path}[{n}]") for n, item in enumerate(value))
        return [found for group in each for found in group]
    if not isinstance(value, dict):
        return []
    found: list[str] = []
    for name, item in value.items():
        child = child_of(schema, name)
        here = f"{path}.{name}" if path else name
        found += [here] if child is None else unknown_fields(item, child, here)
    return found


def pruned(value: Any, schema: Schema) -> Any:
    """A copy without the fields that the schema does not know."""
    if isinstance(value, list):
        return [pruned(item, schema.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return value
    children = ((name, item, child_of(schema, name)) for name, item in value.items())
    return {name: pruned(item, child) for name, item, child in children if child is not None}


def violations(value: Any, schema: Schema, path: str = "") -> list[Cause]:
    """Every (field path, reason) by which `value` breaks its schema."""
    if value is None and (schema.get("nullable") or not schema):
        return []
    wrong_type = _type_violation(value, schema)
    if wrong_type:
        return [(path or "<nil>", wrong_type)]
    if isinstance(value, dict):
        return _object_violations(value, schema, path)
    if isinstance(value, list):
        return _array_violations(value, schema, path)
    return [(path, reason) for reason in _scalar_violations(value, schema)]


def _type_violation(value: Any, schema: Schema) -> str | None:
    if schema.get("x-kubernetes-int-or-string"):
        fits = isinstance(value, (int, str)) and not isinstance(value, bool)
        return None if fits else f"Invalid value: {value!r}: must be an integer or a string"
    wanted = schema.get("type")
    if wanted is None:
        return None
    fits = isinstance(value, TYPES[wanted]) and (wanted == "boolean" or not isinstance(value, bool))
    if fits:
        return None
    return f'Invalid value: "{_type_name(value)}": must be of type {wanted}: "{_type_name(value)}"'


def _type_name(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return next(name for name, types in TYPES.items() if isinstance(value, types))


def _object_violations(value: dict[str, Any], schema: Schema, path: str) -> list[Cause]:
    prefix = f"{path}." if path else ""
    missing = [name for name in schema.get("required", []) if name not in value]
    found = [(f"{prefix}{name}", "Required value") for name in missing]
    for name, item in value.items():
        child = child_of(schema, name)
        if child is not None:
            found += violations(item, child, f"{prefix}{name}")
    return found


def _array_violations(value: list[Any], schema: Schema, path: str) -> list[Cause]:
    found: list[Cause] = []
    if len(value) < schema.get("minItems", 0):
        found.append((path, f"Invalid value: should have at least {schema['minItems']} items"))
    if len(value) > schema.get("maxItems", len(value)):
        found.append((path, f"Too many: {len(value)}: must have at most {schema['maxItems']} items"))
    if schema.get("x-kubernetes-list-type") == "map":
        found += _duplicates(value, schema["x-kubernetes-list-map-keys"], path)
    for index, item in enumerate(value):
        found += violations(item, schema.get("items", {}), f"{path}[{index}]")
    return found


def _duplicates(value: list[Any], keys: list[str], path: str) -> list[Cause]:
    seen: list[tuple[Any, ...]] = []
    found = []
    for index, item in enumerate(value):
        key = tuple(item.get(name) for name in keys) if isinstance(item, dict) else (item,)
        if key in seen:
            found.append((f"{path}[{index}]", f"Duplicate value: {dict(zip(keys, key, strict=True))}"))
        seen.append(key)
    return found


def _scalar_violations(value: Any, schema: Schema) -> list[str]:
    found = []
    if "enum" in schema and value not in schema["enum"]:
        found.append(f'Unsupported value: "{value}": supported values: {", ".join(map(repr, schema["enum"]))}')
    if isinstance(value, str):
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"Invalid value: \"{value}\": in body should match '{schema['pattern']}'")
        if len(value) > schema.get("maxLength", len(value)):
            found.append(f"Too long: may not be more than {schema['maxLength']} bytes")
        if len(value) < schema.get("minLength", 0):
            found.append(f"Invalid value: should be at least {schema['minLength']} chars long")
    elif isinstance(value, (int, float)):
        if value < schema.get("minimum", value):
            found.append(f"Invalid value: {value}: should be greater than or equal to {schema['minimum']}")
        if value > schema.get("maximum", value):
            found.append(f"Invalid value: {value}: should be less than or equal to {schema['maximum']}")
    return found
