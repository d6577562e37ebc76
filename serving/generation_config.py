"""What a model's own files say of how to ask it: `generation_config.json` as vLLM reads it, and its end tokens.

Of the sampling parameters those keys count that are in the file; `do_sample`, which transformers' `generate` needs to
look at them at all, does not. The tokens that end an answer are all that the files name, since fine-tuned models often
have another one in `generation_config.json` than in `config.json`.
"""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from serving.config import ModelConfig
from serving.config.sources import explain
from serving.errors import ModelError
from serving.model_files import read_json

FILE = "generation_config.json"
F = TypeVar("F", bound="_Ends")
_RENAMED = {"max_new_tokens": "max_tokens"}


def _listed(value: object) -> object:
    """One id stands for a list of it."""
    return value if value is None or isinstance(value, list) else [value]


_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Tokens = Annotated[list[_Token], Field(max_length=1024), BeforeValidator(_listed)]


class _Ends(BaseModel):
    """The one key that `config.json` shares; others there have their readers."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    eos_token_id: _Tokens | None = None

    @property
    def ends(self) -> frozenset[int]:
        return frozenset(self.eos_token_id or ())


class GenerationConfig(_Ends):
    """The keys of `generation_config.json` that count here, within the bounds that requests have."""

    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    max_new_tokens: int | None = Field(default=None, ge=1, lt=2**31)

    @property
    def sampling(self) -> dict[str, float]:
        """Values by the names that requests have for them; null in the file is the same as absent."""
        values = self.model_dump(exclude={"eos_token_id"}, exclude_none=True)
        return {_RENAMED.get(name, name): value for name, value in values.items()}


class _TextConfig(_Ends):
    """`config.json`, whose text model may stand in a part of its own."""

    text_config: _Ends | None = None


def read_generation_config(folder: Path) -> GenerationConfig:
    """The file's keys; none where there is no file. Raises `ModelError`, naming the key, for a value out of bounds."""
    return _read(folder / FILE, GenerationConfig)


def sampling_defaults(config: ModelConfig) -> dict[str, float]:
    """Defaults of a request, by the parameters' names, as `model.generation_config` has them.

    `max_tokens` is among them where the file has a `max_new_tokens`. Raises `ModelError` as above.
    """
    return read_generation_config(config.path.expanduser()).sampling if config.generation_config == "auto" else {}


def describe_defaults(config: ModelConfig) -> str:
    """The same as a comment in YAML, for readers of the settings."""
    values = ", ".join(f"{name} {value}" for name, value in sampling_defaults(config).items())
    return (
        f"# Where a request sets none, model.generation_config={config.generation_config} has {values or 'nothing'}\n"
    )


def end_tokens(folder: Path) -> frozenset[int]:
    """All tokens that end an answer by `generation_config.json` and `config.json`. Raises `ModelError`."""
    config = _read(folder / "config.json", _TextConfig)
    nested = config.text_config.ends if config.text_config else frozenset()
    return read_generation_config(folder).ends | config.ends | nested


def _read(file: Path, shape: type[F]) -> F:
    tree = read_json(file) if file.exists() else {}
    try:
        return shape.model_validate(tree)
    except ValidationError as error:
        raise ModelError(f"{file}: {explain(error, shape)}") from error
