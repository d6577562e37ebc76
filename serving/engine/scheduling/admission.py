"""Whether a submission can ever run, and the request that is made from one that can."""

from collections.abc import Hashable
from dataclasses import dataclass

from serving.engine.scheduling.block_manager import BlockTable, salt_root
from serving.engine.scheduling.request import Request
from serving.messages import Submit, TokenId


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model and the KV cache allow one request."""

    max_model_len: int
    vocab_size: int
    eos_token_ids: frozenset[TokenId]
    num_blocks: int
    block_size: int

    def refusal(self, submit: Submit) -> str | None:
        """Why it can never run, as a sentence for the caller; None when it can."""
        length, sampling = len(submit.prompt), submit.sampling
        if not length:
            return "the prompt is empty"
        if submit.pooling is not None and length > self.max_model_len:
            return f"the prompt has {length} tokens; {self.max_model_len} fit the model"
        if submit.pooling is None and length >= self.max_model_len:
            return f"the prompt has {length} tokens; with at least one to answer, {self.max_model_len} fit the model"
        named = [*submit.prompt, *submit.emitted, *sampling.logit_bias, *sampling.stop_token_ids]
        if min(named) < 0 or max(named) >= self.vocab_size:
            return f"a token id is outside the vocabulary of {self.vocab_size}"
        needed = -(-(self._length(submit) - 1) // self.block_size)
        if needed > self.num_blocks:
            return f"prompt and max_tokens need {needed} KV blocks, and there are only {self.num_blocks}"
        return None

    def request(self, submit: Submit, owner: Hashable, handle: int) -> Request:
        """A waiting request, made from a submission that was not refused."""
        stops = frozenset(submit.sampling.stop_token_ids)
        return Request(
            handle=handle,
            id=submit.id,
            owner=owner,
            sampling=submit.sampling,
            priority=submit.priority,
            prompt_len=len(submit.prompt),
            tokens=[*submit.prompt, *submit.emitted],
            limit=self._length(submit),
            stop_ids=stops if submit.sampling.ignore_eos else stops | self.eos_token_ids,
            pooling=submit.pooling,
            table=BlockTable(root=salt_root(submit.cache_salt)),
        )

    def _length(self, submit: Submit) -> int:
        if submit.pooling is not None:  # all of the prompt is computed, and the token behind it never comes
            return len(submit.prompt) + 1
        return min(len(submit.prompt) + submit.sampling.max_tokens, self.max_model_len)
