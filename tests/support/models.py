"""Models that tests serve, besides the demo model.

`small_model` has the demo model's tokenizer, vocabulary and heads, so that all that surrounds the group is as it is in
use, and two layers of random weights: a fraction of the work. Its texts make no sense and repeat nothing, so that
they differ when a token is lost, doubled or drawn again, which the demo model's greedy texts would not always show.
"""

import shutil
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

DEMO = Path("models/smollm2-135m-instruct").absolute()
_LAYERS = 2
_HIDDEN = 288
_SPREAD = 0.1
"""Standard deviation of the weights: five times what models begin their training with, for sharper choices."""


def small_model() -> Path:
    """Its folder; written once, beside the demo model."""
    folder = DEMO.with_name(f"random-{_LAYERS}x{_HIDDEN}")
    if not folder.is_dir():
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch, "model")
            _write(made)
            made.rename(folder)
    return folder


def _write(folder: Path) -> None:
    config = AutoConfig.from_pretrained(DEMO)
    config.update({"num_hidden_layers": _LAYERS, "hidden_size": _HIDDEN, "intermediate_size": 2 * _HIDDEN})
    config.update({"initializer_range": _SPREAD, "tie_word_embeddings": False})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(DEMO / file, folder)
