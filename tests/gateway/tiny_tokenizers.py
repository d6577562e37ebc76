"""Tokenizers of each kind that models come with, trained on a few lines and written as a model's folder has them."""

import json
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as RawTokenizer

SPECIAL = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
RAW = [f"<0x{byte:02X}>" for byte in range(256)]
LINES = ["Hello world, hello there", "the tree house and the other trees", "a b c d e f g", "one two three four"] * 4
KINDS = ("byte-level", "llama", "gemma", "unigram")
"""GPT-2's bytes; Llama 2's BPE with byte fallback, which strips a leading space; Gemma's, which does not; Unigram."""


def write_tokenizer(folder: Path, kind: str) -> None:
    """Train one of `KINDS` and save it in `folder`, which is made, with a `config.json`."""
    trained = _byte_level() if kind == "byte-level" else _unigram() if kind == "unigram" else _sentencepiece(kind)
    trained.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    folder.mkdir()
    trained.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "config.json").write_text(json.dumps({"vocab_size": trained.get_vocab_size()}))


def _byte_level() -> RawTokenizer:
    tokenizer = RawTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(LINES, trainer)
    return tokenizer


def _sentencepiece(kind: str) -> RawTokenizer:
    tokenizer = RawTokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    replaced = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced]) if kind == "llama" else replaced
    strip = [decoders.Strip(" ", 1, 0)] if kind == "llama" else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=200, special_tokens=SPECIAL))
    tokenizer.pre_tokenizer = None
    return _with_raw_bytes(tokenizer)


def _unigram() -> RawTokenizer:
    tokenizer = RawTokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    trainer = trainers.UnigramTrainer(vocab_size=100, special_tokens=SPECIAL, unk_token="<unk>")
    tokenizer.train_from_iterator(LINES, trainer)
    return _with_raw_bytes(tokenizer)


def _with_raw_bytes(tokenizer: RawTokenizer) -> RawTokenizer:
    """Trainers know no byte fallback: its 256 tokens are put behind the others."""
    tree = json.loads(tokenizer.to_str())
    vocabulary = tree["model"]["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary.update({name: len(vocabulary) + byte for byte, name in enumerate(RAW)})
    else:
        vocabulary.extend([name, -20.0] for name in RAW)
    tree["model"]["byte_fallback"] = True
    return RawTokenizer.from_str(json.dumps(tree))
