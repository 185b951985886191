"""When an answer is over: end-of-text tokens and stop strings, looked for as tokens come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.utils import postprocess_generated_text


class Stops:
    """Ends of one kind of answer.

    Args:
        tokenizer: Decodes.
        strings: Stop strings; the answer ends before the first of them.
        ends: Tokens that end it.
    """

    def __init__(self, tokenizer: Any, strings: Sequence[str], ends: frozenset[int]) -> None:
        self.tokenizer, self.strings, self.ends = tokenizer, [one for one in strings if one], ends
        self.width = max((len(one.encode()) for one in self.strings), default=0) + 2  # tokens a string may lie in
        self.completing: dict[int, bool] = {}

    def may_complete(self, token: int) -> bool:
        """Whether ``token`` could hold the end of a stop string; false spares decoding."""
        if token not in self.completing:
            text = self.tokenizer.decode([token])
            self.completing[token] = text == "" or "\N{REPLACEMENT CHARACTER}" in text or any(
                one in text or any(text.startswith(one[start:]) for start in range(len(one))) for one in self.strings)
        return self.completing[token]

    def over(self, tokens: Sequence[int]) -> bool:
        """Whether the last of ``tokens`` ends the answer."""
        if tokens[-1] in self.ends:
            return True
        if not self.may_complete(tokens[-1]):
            return False
        tail = self.tokenizer.decode(list(tokens[-self.width:]))
        return any(one in tail for one in self.strings)

    def text(self, tokens: Sequence[int]) -> str:
        """The answer: decoded without special tokens, cut before the first stop string, as HFLM does it."""
        return postprocess_generated_text(self.tokenizer.decode(list(tokens), skip_special_tokens=True),
                                          stop=list(self.strings), think_end_token=None)
