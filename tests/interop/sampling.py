"""How the next token is chosen: cut-offs and limits of parameters, and seeds that once drew what is impossible."""

from typing import Any

from tests.interop.case import Asker, case

FRANCE = [504, 3575, 282, 4649, 314]
"""The demo model's ids of "The capital of France is"."""
UNLUCKY = 25_798_849
"""With this seed the demo model's " Paris" had a noise of minus infinity behind FRANCE."""


def _text(ask: Asker, prompt: Any, **parameters: Any) -> str:
    return str(ask.completion(prompt, **parameters)["choices"][0]["text"])


@case
def the_only_token_left_is_drawn_whatever_the_seed(ask: Asker) -> None:
    ask.require_model("smollm2-135m-instruct")
    for cut in ({"top_k": 1}, {"top_p": 0.1}, {"temperature": 1e-6}):
        asked: dict[str, Any] = {"max_tokens": 1, "temperature": 1, "seed": UNLUCKY, **cut}
        assert _text(ask, FRANCE, **asked) == " Paris", cut


@case
def parameters_that_tend_to_greedy_give_the_greedy_text(ask: Asker) -> None:
    greedy = _text(ask, "The capital of France is")
    for limit in ({"temperature": 1e-40}, {"temperature": 1, "top_p": 0}, {"temperature": 1, "top_p": 1e-50}):
        assert _text(ask, "The capital of France is", seed=1, **limit) == greedy, limit


@case
def a_top_k_of_more_than_the_vocabulary_is_off(ask: Asker) -> None:
    asked: dict[str, Any] = {"temperature": 1, "seed": 3}
    free = _text(ask, "Hi", **asked)
    for top_k in (0, -1, 3_000_000, 2**31 - 1):
        assert _text(ask, "Hi", top_k=top_k, **asked) == free, top_k


@case
def parameters_of_any_size_are_answered(ask: Asker) -> None:
    biases = {str(token): 0.001 for token in range(1024)}
    for parameters in ({"logit_bias": biases}, {"top_p": 0.999999, "temperature": 2}, {"top_k": 40_000}):
        asked: dict[str, Any] = {"temperature": 1, "seed": 4, **parameters}
        assert _text(ask, "Hi", **asked) == _text(ask, "Hi", **asked), list(parameters)
