"""The demo model's files: who may read them. Fetching and converting are not tried here, as they need the network."""

import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from serving.tools import demo_model


def _converted(gguf: Path, folder: Path) -> None:
    folder.mkdir()
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    (folder / "model.safetensors").chmod(0o600)
    (folder / "tokenizer.json").write_text("{}")


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in folder.iterdir()}


@pytest.mark.parametrize("there_before", [False, True])
def test_others_may_read_every_file_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there_before: bool
) -> None:
    folder = tmp_path / "model"
    if there_before:
        _converted(tmp_path, folder)
    monkeypatch.setattr(demo_model, "_fetch", lambda scratch: scratch)
    monkeypatch.setattr(demo_model, "_convert", _converted)
    assert demo_model.write_demo_model(folder) is not there_before
    assert modes(folder) == {0o644}
