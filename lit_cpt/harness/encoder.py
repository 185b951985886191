"""Text to tokens as lm-eval's HFLM does it, each text once: what was encoded is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from lit_cpt.prepare.tokens import tokenizer_fingerprint

Pair = tuple[tuple[int, ...], tuple[int, ...]]
CHUNK = 512  # texts encoded at a time


def fingerprint(tokenizer: Any) -> str:
    """Equal for tokenizers that give the same tokens, special ones included."""
    special = [list(tokenizer("")["input_ids"]), tokenizer.bos_token_id, tokenizer.eos_token_id]
    return f"{tokenizer_fingerprint(tokenizer)} {special}"


class Encoder:
    """Encodes requests and keeps their tokens.

    Args:
        tokenizer: One of transformers; it is not changed, and needs no pad token.
        apart: Encode a context and its continuation each by itself, for models that read them apart.

    Raises:
        ValueError: It has neither a BOS nor an EOS token.
    """

    def __init__(self, tokenizer: Any, apart: bool = False) -> None:
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {getattr(tokenizer, 'name_or_path', '')!r} has no EOS token, which ends an "
                             "answer and begins a text without context. Set one of its tokens: "
                             "tokenizer.eos_token = '...'.")
        self.tokenizer, self.apart = tokenizer, apart
        self.eos: int = tokenizer.eos_token_id
        self.first: int = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.first_text: str = tokenizer.decode(self.first)
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.contexts: dict[str, tuple[int, ...]] = {}
        self.encoded = 0  # texts given to the tokenizer so far

    def encode(self, texts: Sequence[str], bos_text: str | None, special: bool | None = None) -> list[tuple[int, ...]]:
        """Tokens of each text; a text that begins with the BOS token's text gets no second one."""
        self.encoded += len(texts)
        flags = [False if bos_text is not None and special is None and text.startswith(bos_text) else special
                 for text in texts]
        found: dict[int, tuple[int, ...]] = {}
        for flag in set(flags):
            places = [place for place, one in enumerate(flags) if one is flag]
            settings = {} if flag is None else {"add_special_tokens": flag}
            encoded = self.tokenizer([texts[place] for place in places], return_attention_mask=False, verbose=False,
                                     **settings)["input_ids"]
            found |= {place: tuple(tokens) for place, tokens in zip(places, encoded, strict=True)}
        return [found[place] for place in range(len(texts))]

    def encode_pairs(self, asked: Iterable[tuple[str, str]], check: Callable[[], None] = lambda: None) -> None:
        """Make sure that `pairs` has tokens of context and continuation for each pair asked.

        Spaces at the end of a context go to its continuation; the two are encoded as one text and then cut, unless
        they are kept apart.
        """
        missing = list(dict.fromkeys(pair for pair in asked if pair not in self.pairs))
        for first in range(0, len(missing), CHUNK):
            check()
            self._encode_chunk(missing[first : first + CHUNK])

    def _encode_chunk(self, chunk: list[tuple[str, str]]) -> None:
        moved = {pair: (bare, pair[0][len(bare):] + pair[1]) for pair in chunk for bare in [pair[0].rstrip()]}
        alone = [pair for pair in chunk if not pair[0]]
        for pair, tokens in zip(alone, self.encode([pair[1] for pair in alone], None, False), strict=True):
            self.pairs[pair] = (tokens[:1], tokens[1:]) if tokens[:1] == (self.first,) else ((self.first,), tokens)
        pairs = [pair for pair in chunk if pair[0]]
        contexts = list(dict.fromkeys(moved[pair][0] for pair in pairs))
        known = dict(zip(contexts, self.encode(contexts, self.first_text), strict=True))
        if self.apart:
            ends = self.encode([moved[pair][1] for pair in pairs], None, False)
        else:
            wholes = self.encode(["".join(moved[pair]) for pair in pairs], self.first_text)
            ends = [whole[len(known[moved[pair][0]]):] for pair, whole in zip(pairs, wholes, strict=True)]
        for pair, end in zip(pairs, ends, strict=True):
            self.pairs[pair] = (known[moved[pair][0]] or (self.first,), end)

    def encode_contexts(self, asked: Iterable[str], check: Callable[[], None] = lambda: None) -> None:
        """Make sure that `contexts` has the tokens of each prompt asked."""
        missing = list(dict.fromkeys(text for text in asked if text not in self.contexts))
        for first in range(0, len(missing), CHUNK):
            check()
            chunk = missing[first : first + CHUNK]
            self.contexts |= dict(zip(chunk, self.encode(chunk, self.tokenizer.bos_token), strict=True))
