"""Small random-weight models of every supported family, saved as Hugging Face folders.

Three layers, hidden size 96, 6 heads, 3 KV heads where the family groups them, an odd vocabulary: whatever can be split
unevenly is. All weights are random, norms and biases too, so that a slice in the wrong place shows in the logits.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor

VOCAB = 211
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
GROUPED = SIZES | {"num_key_value_heads": 3}
WINDOW = 4
"""Shorter than the tests' prompts."""

Make = Callable[..., Any]


def _llama(**more: Any) -> Any:
    return hf.LlamaConfig(**(GROUPED | more))


def _rope(kind: str, **more: Any) -> Any:
    return _llama(rope_parameters={"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0} | more)


def _falcon(**more: Any) -> Any:
    return hf.FalconConfig(**(SIZES | {"ffn_hidden_size": 160, "alibi": False} | more))


def _opt(**more: Any) -> Any:
    return hf.OPTConfig(**(SIZES | {"ffn_dim": 160, "word_embed_proj_dim": 96} | more))


def _phi3(**more: Any) -> Any:
    return hf.Phi3Config(**(GROUPED | {"sliding_window": WINDOW} | more))


def _gemma3_text() -> dict[str, Any]:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    return GROUPED | {"head_dim": 16, "layer_types": kinds, "sliding_window": WINDOW, "query_pre_attn_scalar": 20}


def _gemma3_with_vision() -> Any:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 28, "patch_size": 14}
    return hf.Gemma3Config(text_config=_gemma3_text(), vision_config=vision, mm_tokens_per_image=4)


MODELS: dict[str, Make] = {
    "llama": _llama,
    "llama, tied": lambda: _llama(tie_word_embeddings=True),
    "llama, biases": lambda: _llama(attention_bias=True, mlp_bias=True),
    "llama, attention biases": lambda: _llama(attention_bias=True),
    "llama, 2 KV heads": lambda: _llama(num_key_value_heads=2),
    "llama, 9 heads": lambda: _llama(num_attention_heads=9, hidden_size=144, intermediate_size=384),
    "llama, linear rope": lambda: _rope("linear"),
    "llama, yarn rope": lambda: _rope("yarn", factor=4.0, original_max_position_embeddings=16),
    "llama, llama3 rope": lambda: _rope(
        "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
    "llama, dynamic rope": lambda: _rope("dynamic"),
    "mistral": lambda: hf.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "qwen2": lambda: hf.Qwen2Config(**GROUPED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    "qwen2, 2 KV heads": lambda: hf.Qwen2Config(**(GROUPED | {"num_key_value_heads": 2})),
    "qwen3": lambda: hf.Qwen3Config(**GROUPED, head_dim=24),
    "qwen3, heads of 32": lambda: hf.Qwen3Config(**GROUPED, head_dim=32),
    "gemma": lambda: hf.GemmaConfig(**GROUPED, head_dim=16),
    "gemma2": lambda: hf.Gemma2Config(**GROUPED, head_dim=16, sliding_window=WINDOW, attn_logit_softcapping=2.0),
    "gemma3_text": lambda: hf.Gemma3TextConfig(**_gemma3_text()),
    "gemma3": _gemma3_with_vision,
    "opt": _opt,
    "opt, norms last": lambda: _opt(do_layer_norm_before=False, word_embed_proj_dim=40),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**SIZES),
    "gpt_neox, sequential": lambda: hf.GPTNeoXConfig(**SIZES, use_parallel_residual=False),
    "falcon": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=3, bias=True),
    "falcon, 2 KV heads": lambda: _falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon, one KV head": lambda: _falcon(multi_query=True, bias=True),
    "falcon, ungrouped": lambda: _falcon(multi_query=False, parallel_attn=False),
    "glm": lambda: hf.GlmConfig(**GROUPED, head_dim=16, attention_bias=True),
    "glm4": lambda: hf.Glm4Config(**GROUPED, head_dim=16),
    "granite": lambda: hf.GraniteConfig(
        **GROUPED, logits_scaling=3.0, attention_multiplier=0.2, embedding_multiplier=5.0, residual_multiplier=0.7
    ),
    "phi3": _phi3,
    "phi3, 2 KV heads": lambda: _phi3(num_key_value_heads=2),
    "phi3, longrope": lambda: _phi3(
        original_max_position_embeddings=32,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + 0.1 * i for i in range(8)],
            "long_factor": [2.0 + 0.1 * i for i in range(8)],
        },
    ),
    "starcoder2": lambda: hf.Starcoder2Config(**GROUPED, sliding_window=WINDOW),
    "stablelm": lambda: hf.StableLmConfig(**GROUPED, use_qkv_bias=True),
    "olmo": lambda: hf.OlmoConfig(**GROUPED, clip_qkv=0.5),
    "cohere": lambda: hf.CohereConfig(**GROUPED),
    "phi": lambda: hf.PhiConfig(**GROUPED),
    "phi, normed heads": lambda: hf.PhiConfig(**GROUPED, qk_layernorm=True),
    "nemotron": lambda: hf.NemotronConfig(**GROUPED),
}
"""What is written after the comma is a variant of the family."""


def make_model(name: str) -> Any:
    """The model, float32, evaluating, the same weights each time."""
    torch.manual_seed(0)
    config = MODELS[name]()
    config._attn_implementation = "eager"
    kind = hf.Gemma3ForConditionalGeneration if name == "gemma3" else hf.AutoModelForCausalLM
    model = kind(config) if name == "gemma3" else kind.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            _randomise(weight)
    return model.float().eval()


def save_model(name: str, folder: Path, **options: Any) -> Any:
    """Make the model, save it to `folder`, and return it."""
    model = make_model(name)
    model.save_pretrained(folder, **options)
    return model


def reference_logits(model: Any, prompts: list[list[int]]) -> Tensor:
    """Hugging Face's own logits of each prompt by itself, one after another: float32 [T, vocab]."""
    with torch.no_grad():
        return torch.cat([model(input_ids=torch.tensor([prompt])).logits[0] for prompt in prompts])


def _randomise(weight: Tensor) -> None:
    if weight.dim() > 1:
        weight.normal_(0.0, 1.5 * weight.shape[-1] ** -0.5)
    else:
        weight.add_(torch.randn_like(weight), alpha=0.2)
