"""Between a target and a draft with another tokenizer: what one says, by way of its text, in the tokens of the other."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from typing import Any

TAIL_TOKENS = 8
"""Tokens before a text that are read with it: how tokenizers cut a text depends on what stands before."""
INCOMPLETE = "\ufffd"
"""What decoders put where bytes of a character are missing."""
KNOWN_LINES = 4096
"""Lines whose tokens are remembered."""
_LINES = re.compile(r"(?<=\n)(?=\S)")


class _Side:
    """One of the two tokenizers; markers stay in its texts.

    Args:
        tokenizer: mlx-lm's TokenizerWrapper.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        self.markers: dict[int, str] = {i: str(token) for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ends = frozenset(i for i in tokenizer.eos_token_ids if i is not None)
        self.prefixed = tokenizer.convert_ids_to_tokens(self.tokens("a"))[:1] != ["a"]
        """It puts a space before whatever it is given."""

    def tokens(self, text: str) -> list[int]:
        """Ids of a text."""
        return list(self._tokenizer.encode(text, add_special_tokens=False, verbose=False))

    def text(self, tokens: Sequence[int]) -> str:
        """Text of ids."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def after(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """What ``tokens`` add to the text of those before them."""
        tail = list(before[-TAIL_TOKENS:])
        return self.text([*tail, *tokens])[len(self.text(tail)) :]

    @property
    def start(self) -> list[int]:
        """The token that begins every text, where there is one."""
        first = getattr(self._tokenizer, "bos_token_id", None)
        return [first] if first is not None and first in self._tokenizer.encode("") else []


class Translation:
    """Turns a context into the draft's tokens, and what the draft goes on with into the target's.

    Nothing has to come out right: the target verifies every token. What both sides spell alike is kept, markers too; markers that the
    draft does not know are left out of what it reads.

    Args:
        target: the target's tokenizer, mlx-lm's TokenizerWrapper.
        draft: the draft's.
        reason: how the two differ, for reports.
    """

    def __init__(self, target: Any, draft: Any, reason: str) -> None:
        self.reason = reason
        self._target, self._draft = _Side(target), _Side(draft)
        known = set(self._draft.markers.values())
        self._unknown = frozenset(i for i, text in self._target.markers.items() if text not in known)
        self._mute = self._draft.markers.keys() | self._draft.ends
        self._start = self._draft.start
        self._end = target.eos_token_id if target.eos_token_id is not None else min(self._target.ends, default=None)
        self._line = functools.lru_cache(maxsize=KNOWN_LINES)(self._draft.tokens)

    def text(self, tokens: Sequence[int]) -> str:
        """What the draft reads of the target's ``tokens``."""
        return self._target.text(self._readable(tokens))

    def text_after(self, before: Sequence[int], tokens: Sequence[int]) -> str:
        """What the draft reads of ``tokens`` that follow others."""
        return self._target.after(self._readable(before[-TAIL_TOKENS:]), self._readable(tokens))

    def _readable(self, tokens: Sequence[int]) -> list[int]:
        return [token for token in tokens if token not in self._unknown]

    def heard(self, text: str) -> list[int]:
        """A text in the draft's tokens, line by line: a line keeps its tokens, whatever follows it, so only the last is new."""
        lines = [text] if self._draft.prefixed else _LINES.split(text)
        tokens = [token for line in lines for token in self._line(line)]
        return tokens if tokens[: len(self._start)] == self._start else [*self._start, *tokens]

    def spoken(self, drawn: Sequence[int]) -> list[int]:
        """What of the draft's tokens can be said: all up to the first marker, an end of its answer included."""
        n = next((i for i, token in enumerate(drawn) if token in self._mute or token >= self._draft.size), len(drawn))
        return list(drawn[: n + (n < len(drawn) and drawn[n] in self._draft.ends)])

    def said(self, context: Sequence[int], heard: Sequence[int], drawn: Sequence[int]) -> list[int]:
        """What the draft goes on with, in the target's tokens: the text that it adds, cut as behind the context.

        Args:
            context: target ids.
            heard: the same in the draft's tokens.
            drawn: what the draft says after it, from :meth:`spoken`.
        """
        ended = bool(drawn) and drawn[-1] in self._draft.ends
        new, _, _ = self._draft.after(heard, drawn[: len(drawn) - ended]).partition(INCOMPLETE)
        tokens = self._cut(context, new) if new else []
        return [*tokens, self._end] if ended and self._end is not None else tokens

    def _cut(self, context: Sequence[int], new: str) -> list[int]:
        """``new`` in the target's tokens; alone where it would grow together with the last word of the context."""
        before = self._target.text(context[-TAIL_TOKENS:])
        own, joint = self._target.tokens(before), self._target.tokens(before + new)
        if joint[: len(own)] == own:
            return joint[len(own) :]
        return [] if self._target.prefixed else self._target.tokens(new)

    def chances(
        self, context: Sequence[int], said: Sequence[int], heard: Sequence[int], drawn: Sequence[int], given: Sequence[float]
    ) -> tuple[float, ...]:
        """How sure the draft is of each token of ``said``: the product of what it gave to the tokens that begin in it.

        Args:
            context: target ids.
            said: from :meth:`said`, or its first tokens.
            heard: as there.
            drawn: as there.
            given: probability of each of ``drawn``.
        """
        starts = [len(self._draft.after(heard, drawn[:i])) for i in range(len(drawn))]
        found, at = [], 0
        for n in range(1, len(said) + 1):
            end, chance = len(self._target.after(context, said[:n])), 1.0
            while at < len(starts) and starts[at] < end:
                chance *= given[at]
                at += 1
            found.append(chance)
        return tuple(found)
