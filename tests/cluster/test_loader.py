"""Every way to a configuration, and every way from one to documents, goes through one check."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from cluster.cli import app
from cluster.config.loader import checked, load_spec, make_spec
from cluster.config.spec import ClusterSpec
from cluster.doctor.probe import probe_documents
from cluster.errors import SpecError
from cluster.manifests.batch_job import batch_documents, batch_spec
from cluster.manifests.render import render
from tests.cluster.conftest import ROOT, TREE, MakeSpec, changed_tree

BATCH = {"mount_path": "/work", "claim": "rows"}
ROWS = ["/work/in.jsonl", "/work/out.jsonl"]

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rule": ({"nodes": {"count": 3}}, "nodes.count x nodes.gpus_per_node is 3 x 8 = 24"),
    "rule of two sections": ({"security": {"api_keys_secret": None}}, "name a Secret with bearer keys"),
    "form of a value": ({"nodes": {"gpus_per_node": 99}}, "nodes.gpus_per_node: Input should be less than"),
    "rule of one section": ({"storage__model": {"host_path": "/m"}}, "give claim or host_path, not both"),
    "rule of the serving configuration": ({"serving__engine": {"max_running": 9999}}, "at least max_running"),
}

Way = Callable[[dict[str, Any]], ClusterSpec]


def made_by_hand(changes: dict[str, Any]) -> ClusterSpec:
    """Past every validator: each section a copy of a right one with the changes in it."""
    spec: Any = make_spec(changed_tree(storage__batch=BATCH))
    for dotted, change in changes.items():
        spec = _put(spec, dotted.split("__"), change)
    return spec  # type: ignore[no-any-return]


def _put(section: Any, names: list[str], change: dict[str, Any]) -> Any:
    inner = getattr(section, names[0])
    inner = inner.model_copy(update=change) if len(names) == 1 else _put(inner, names[1:], change)
    return section.model_copy(update={names[0]: inner})


DOCUMENTS: dict[str, Callable[[ClusterSpec], object]] = {
    "checked": checked,
    "render": render,
    "batch_spec": batch_spec,
    "batch_documents": lambda spec: batch_documents(spec, ROWS),
    "probe_documents": probe_documents,
}


@pytest.mark.parametrize("fault", WRONG)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_is_made_of_a_configuration_that_was_put_together_by_hand_and_is_wrong(name: str, fault: str) -> None:
    changes, words = WRONG[fault]
    with pytest.raises(SpecError) as caught:
        DOCUMENTS[name](made_by_hand(changes))
    assert words in str(caught.value)


def test_all_that_turns_a_configuration_into_documents_is_in_the_list_above() -> None:
    """What a person calls, that is: public functions that return whole documents of a configuration."""
    found = set()
    for file in (ROOT / "cluster").rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                takes = [ast.unparse(arg.annotation) for arg in node.args.args[:1] if arg.annotation]
                gives = ast.unparse(node.returns) if node.returns else ""
                if takes == ["ClusterSpec"] and gives in {
                    "list[Document]",
                    "list[Manifest]",
                    "Manifest",
                    "ClusterSpec",
                }:
                    found.add(node.name)
    assert found == {name for name in DOCUMENTS if name != "checked"} | {"checked"}


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., Path]:
    """A cluster configuration and its serving configuration as files."""

    def write(**changes: object) -> Path:
        tree = changed_tree(**changes)
        (tmp_path / "serving.yaml").write_text(yaml.safe_dump(tree["serving"]))
        path = tmp_path / "gang.yaml"
        path.write_text(yaml.safe_dump(tree | {"serving": "serving.yaml"}))
        return path

    return write


def commands() -> list[str]:
    """Those that take a cluster configuration."""
    group: Any = typer.main.get_command(app)
    return sorted(name for name, one in group.commands.items() if any(p.name == "config" for p in one.params))


def run(verb: str, path: Path, *more: str) -> None:
    typer.main.get_command(app).main([verb, str(path), *more], prog_name="gangway cluster", standalone_mode=False)


@pytest.mark.parametrize("fault", ["rule", "rule of two sections", "form of a value", "rule of one section"])
@pytest.mark.parametrize("verb", commands())
def test_every_command_refuses_a_file_that_is_wrong(verb: str, fault: str, files: Callable[..., Path]) -> None:
    changes, words = WRONG[fault]
    with pytest.raises(SpecError) as caught:
        run(verb, files(**changes))
    assert words in str(caught.value)


@pytest.mark.parametrize("verb", commands())
def test_every_command_refuses_an_override_that_makes_it_wrong(verb: str, files: Callable[..., Path]) -> None:
    with pytest.raises(SpecError, match="3 x 8 = 24"):
        run(verb, files(), "--set", "nodes.count=3")


def test_loading_and_checking_again_gives_an_equal_one(files: Callable[..., Path]) -> None:
    spec = load_spec(files(storage__batch=BATCH))
    assert checked(spec) == spec == make_spec(changed_tree(storage__batch=BATCH))
    assert TREE["name"] == spec.name


@pytest.mark.parametrize("mount", ["/", "/etc/gangway", "/dev/shm", "/var/cache/gangway/x"])
def test_neither_volume_covers_what_the_image_uses(make: MakeSpec, mount: str) -> None:
    with pytest.raises(SpecError, match=r"storage\.batch\.mount_path .* is in use by the image"):
        make(storage__batch=BATCH | {"mount_path": mount})
