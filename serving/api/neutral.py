"""Fields of other servers (vLLM, SGLang, llama.cpp, TGI, OpenRouter) that clients send whether they mean them or not.

Each is taken at the value at which it asks for nothing, and refused by name at any other: what is not built is never
silently left out. Null is the same as absent everywhere.
"""

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Fields(BaseModel):
    """A JSON object that takes only what it names."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Neutral:
    """Marks a field that takes null and these values only."""

    def __init__(self, *values: object) -> None:
        self._values = [None, *values]

    def __get_pydantic_core_schema__(self, _source: Any, _handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": self._values}

    def _check(self, value: object) -> None:
        if not any(_equal(value, one) for one in self._values):
            told = " or ".join(
                msgspec.json.encode(one).decode() for one in self._values if one not in (None, [], {}, "")
            )
            raise PydanticCustomError("not_supported", f"is not supported; leave it out{told and f', or send {told}'}")


def _equal(one: object, other: object) -> bool:
    """As JSON has it: true is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def known(model: type[BaseModel]) -> list[str]:
    """Fields that mean something here."""
    return [
        name for name, field in model.model_fields.items() if not any(isinstance(m, Neutral) for m in field.metadata)
    ]


Unset = Annotated[Any, Neutral()]
Empty = Annotated[Any, Neutral([], {}, "")]
OnlyTrue = Annotated[Any, Neutral(True)]
OnlyFalse = Annotated[Any, Neutral(False)]
OnlyZero = Annotated[Any, Neutral(0)]
OnlyOne = Annotated[Any, Neutral(1)]
Echo = Mapping[str, Any]
"""Part of an answer that a client sends back; taken and not used."""


class NeutralSampling(Fields):
    """How other servers sample, cut, constrain and report."""

    adapter_id: Unset = None
    allowed_token_ids: Empty = None
    bad_words: Empty = None
    best_of: OnlyOne = None
    cache_prompt: OnlyTrue = None
    custom_params: Empty = None
    decoder_input_details: OnlyFalse = None
    details: OnlyFalse = None
    do_sample: Unset = None
    dry_multiplier: OnlyZero = None
    dynatemp_range: OnlyZero = None
    early_stopping: OnlyFalse = None
    ebnf: Empty = None
    grammar: Empty = None
    guided_choice: Empty = None
    guided_decoding_backend: Unset = None
    guided_grammar: Empty = None
    guided_json: Empty = None
    guided_regex: Empty = None
    guided_whitespace_pattern: Unset = None
    include_stop_str_in_output: OnlyFalse = None
    json_schema: Empty = None
    kv_transfer_params: Empty = None
    length_penalty: OnlyOne = None
    logit_processors: Empty = None
    logits_processors: Empty = None
    logprob_token_ids: Empty = None
    lora_path: Unset = None
    min_keep: OnlyZero = None
    mirostat: OnlyZero = None
    n_probs: OnlyZero = None
    no_stop_trim: OnlyFalse = None
    num_beams: OnlyOne = None
    prompt_logprobs: Unset = None
    regex: Empty = None
    repeat_penalty: OnlyOne = None
    repetition_detection: Unset = None
    request_id: Unset = None
    return_full_text: OnlyFalse = None
    return_hidden_states: OnlyFalse = None
    return_prompt_text: OnlyFalse = None
    return_token_ids: OnlyFalse = None
    return_tokens_as_token_ids: OnlyFalse = None
    session_id: Unset = None
    skip_special_tokens: OnlyTrue = None
    spaces_between_special_tokens: OnlyTrue = None
    structural_tag: Empty = None
    structured_outputs: Empty = None
    tfs_z: OnlyOne = None
    thinking_token_budget: Unset = None
    top_a: OnlyZero = None
    top_n_tokens: OnlyZero = None
    truncate: Unset = None
    truncate_prompt_tokens: Unset = None
    truncation_side: Unset = None
    typical_p: OnlyOne = None
    use_beam_search: OnlyFalse = None
    vllm_xargs: Empty = None
    watermark: OnlyFalse = None
    watermarking: OnlyFalse = None
    xtc_probability: OnlyZero = None


class NeutralCompletion(Fields):
    """Of `/v1/completions` elsewhere."""

    add_special_tokens: OnlyTrue = None
    echo: OnlyFalse = None
    prompt_embeds: Empty = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    suffix: Empty = None
    usage: Echo | None = None


class NeutralChat(Fields):
    """Of `/v1/chat/completions` elsewhere, and of what is not built here."""

    add_generation_prompt: OnlyTrue = None
    add_special_tokens: OnlyFalse = None
    audio: Unset = None
    chat_template: Unset = None
    chat_template_kwargs: Empty = None
    continue_final_message: OnlyFalse = None
    documents: Empty = None
    echo: OnlyFalse = None
    enable_thinking: Unset = None
    function_call: Annotated[Any, Neutral("none", "auto")] = None
    functions: Empty = None
    include_reasoning: OnlyTrue = None
    media_io_kwargs: Empty = None
    mm_processor_kwargs: Empty = None
    models: Empty = None
    parallel_tool_calls: Annotated[Any, Neutral(True, False)] = None
    plugins: Empty = None
    prediction: Unset = None
    prompt_cache_retention: Unset = None
    provider: Empty = None
    reasoning: Empty = None
    reasoning_effort: Annotated[Any, Neutral("none")] = None
    reasoning_format: Annotated[Any, Neutral("none")] = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    route: Unset = None
    separate_reasoning: OnlyTrue = None
    service_tier: Annotated[Any, Neutral("auto", "default")] = None
    store: OnlyFalse = None
    stream_reasoning: OnlyTrue = None
    thinking: Empty = None
    tool_choice: Annotated[Any, Neutral("none", "auto")] = None
    tools: Empty = None
    transforms: Empty = None
    usage: Echo | None = None
    verbosity: Annotated[Any, Neutral("medium")] = None
    web_search_options: Unset = None


class NeutralMessage(Fields):
    """Of a message that was an answer once, here or elsewhere."""

    annotations: Empty = None
    audio: Unset = None
    cache_control: Unset = None
    function_call: Unset = None
    images: Empty = None
    partial: OnlyFalse = None
    prefix: OnlyFalse = None
    reasoning: Empty = None
    reasoning_content: Empty = None
    reasoning_details: Empty = None
    refusal: Unset = None
    thinking: Empty = None
    tool_call_id: Unset = None
    tool_calls: Empty = None
    usage: Echo | None = None


class NeutralPart(Fields):
    """Of a piece of a message."""

    annotations: Empty = None
    cache_control: Unset = None


class NeutralEmbedding(Fields):
    """Of `/v1/embeddings` elsewhere."""

    add_special_tokens: OnlyTrue = None
    additional_data: Unset = None
    dimensions: Unset = None
    embed_dtype: Annotated[Any, Neutral("float32")] = None
    endianness: Annotated[Any, Neutral("native", "little")] = None
    input_type: Unset = None
    mm_processor_kwargs: Empty = None
    prompt_name: Unset = None
    request_id: Unset = None
    truncate: Annotated[Any, Neutral(False, "NONE")] = None
    truncate_prompt_tokens: Unset = None
    truncation_direction: Unset = None
    truncation_side: Unset = None
    usage: Echo | None = None
