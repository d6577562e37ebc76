"""Write published CustomResourceDefinitions as the JSON files of this folder: `python -m tests.crds.strip FILE...`.

Descriptions and printer columns are left out, and so are versions that are not stored. A file is named for its
resource, as in `rayjobs.ray.io.json`.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent


def strip(definition: dict[str, Any]) -> dict[str, Any]:
    """What the tests need of a definition: its names, and the schema of its stored version."""
    spec = definition["spec"]
    stored = [_without_prose(version) for version in spec["versions"] if version["storage"]]
    return {key: definition[key] for key in ("apiVersion", "kind")} | {
        "metadata": {"name": definition["metadata"]["name"]},
        "spec": {key: spec[key] for key in ("group", "names", "scope")} | {"versions": stored},
    }


def _without_prose(version: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in version.items() if key != "additionalPrinterColumns"}
    return kept | {"schema": {"openAPIV3Schema": _schema(version["schema"]["openAPIV3Schema"])}}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key != "description"}
    if "properties" in kept:
        kept["properties"] = {name: _schema(child) for name, child in kept["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(kept.get(key), dict):
            kept[key] = _schema(kept[key])
    return kept


if __name__ == "__main__":
    for name in sys.argv[1:]:
        read = strip(yaml.load(Path(name).read_text(encoding="utf-8"), yaml.CSafeLoader))
        text = json.dumps(read, indent=1, sort_keys=True) + "\n"
        (FOLDER / f"{read['metadata']['name']}.json").write_text(text, encoding="utf-8")
