"""A kept shard comes back bit for bit or not at all, and never stops a rank from serving."""

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serving.engine.loading.checkpoint import open_checkpoint
from serving.engine.loading.shard_cache import ShardCache, shard_key
from serving.engine.loading.weights import Plan, TensorSlice


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    shapes = {"a": (5, 3), "b": (7,), "no rows": (0, 4), "c": (2, 3)}
    return {name: torch.randn(shape).to(torch.bfloat16) for name, shape in shapes.items()}


def empty(tensors: dict[str, Tensor], dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, float("nan"), dtype=dtype) for name, tensor in tensors.items()}


def unwatched(loaded: int) -> None:
    pass


def test_what_was_saved_is_loaded(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = ShardCache(tmp_path / "new" / "folder", "key")
    cache.save(tensors)
    kept, progress = empty(tensors), list[int]()
    assert cache.load(kept, progress.append)
    assert progress == [30, 44, 44, 56]
    assert all(torch.equal(kept[name], tensors[name]) for name in tensors)
    assert [file.name for file in cache.file.parent.iterdir()] == ["key.safetensors"]


def test_the_file_is_a_safetensors_file(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = ShardCache(tmp_path, "key")
    cache.save(tensors)
    assert torch.equal(load_file(cache.file)["a"], tensors["a"])


def test_nothing_is_loaded_before_anything_is_saved(tmp_path: Path) -> None:
    assert not ShardCache(tmp_path, "key").load({"a": torch.empty(1)}, unwatched)


@pytest.mark.parametrize("place", [0, 9, -1])
def test_a_changed_byte_is_noticed_and_the_file_removed(
    place: int, tmp_path: Path, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(tmp_path, "key")
    cache.save(tensors)
    content = bytearray(cache.file.read_bytes())
    content[place] ^= 1
    cache.file.write_bytes(content)
    assert not cache.load(empty(tensors), unwatched)
    assert not cache.file.exists()
    assert "is broken and will be made again" in caplog.text


def test_a_file_cut_short_is_noticed(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = ShardCache(tmp_path, "key")
    cache.save(tensors)
    os.truncate(cache.file, cache.file.stat().st_size - 1)
    assert not cache.load(empty(tensors), unwatched)


def test_a_file_without_checksums_or_with_other_tensors_is_not_used(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    cache = ShardCache(tmp_path, "key")
    for wrong in ({"a": tensors["a"].clone()}, {name: tensor[:1].clone() for name, tensor in tensors.items()}):
        save_file(wrong, cache.file)
        assert not cache.load(empty(tensors), unwatched)
    cache.save(tensors)
    assert not cache.load(empty(tensors, torch.float16), unwatched)


def test_a_folder_that_cannot_be_made_is_logged(
    tmp_path: Path, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    ShardCache(tmp_path / "file", "key").save(tensors)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "the shard is not kept" in caplog.text


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_logged_and_leaves_nothing(
    tmp_path: Path, tensors: dict[str, Tensor], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_full_disk(**names: object) -> tuple[int, str]:
        scratch = tmp_path / f"{names['prefix']}{names['suffix']}"
        scratch.touch()
        return os.open("/dev/full", os.O_WRONLY), str(scratch)

    monkeypatch.setattr("tempfile.mkstemp", on_a_full_disk)
    ShardCache(tmp_path, "key").save(tensors)
    assert "No space left on device" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_the_key_changes_with_whatever_the_shard_depends_on(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    plan: Plan = {"w": TensorSlice(checkpoint.tensors["w"])}
    keys = [
        shard_key(checkpoint, torch.float32, 2, 0, plan),
        shard_key(checkpoint, torch.float32, 2, 1, plan),
        shard_key(checkpoint, torch.float32, 3, 0, plan),
        shard_key(checkpoint, torch.bfloat16, 2, 0, plan),
    ]
    assert keys[0] == shard_key(checkpoint, torch.float32, 2, 0, plan)
    keys.append(shard_key(checkpoint, torch.float32, 2, 0, {"packed": plan["w"]}))
    os.utime(tmp_path / "model.safetensors", ns=(1, 1))
    keys.append(shard_key(checkpoint, torch.float32, 2, 0, plan))
    (tmp_path / "config.json").write_text("{ }")
    keys.append(shard_key(checkpoint, torch.float32, 2, 0, plan))
    assert len(set(keys)) == len(keys)


def test_models_of_equal_names_sizes_and_times_have_different_keys(tmp_path: Path) -> None:
    keys = set()
    for name, value in (("a", 0.0), ("b", 1.0)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        save_file({"w": torch.full((50_000,), value)}, folder / "model.safetensors")
        os.utime(folder / "model.safetensors", ns=(0, 0))
        checkpoint = open_checkpoint(folder)
        keys.add(shard_key(checkpoint, torch.float32, 2, 0, {"w": TensorSlice(checkpoint.tensors["w"])}))
    assert len(keys) == 2
