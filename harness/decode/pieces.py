"""Text of an answer, token by token as it comes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What decoders put where bytes of a character are missing."""


class TextPieces:
    """Turns tokens into the text each of them adds, so that the pieces join to the whole answer.

    Only the tokens since the last complete piece are decoded again, after a piece whose text is known: decoders write the same
    token differently at the start of a text.

    Args:
        decode: token ids to text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._before: list[int] = []
        self._open: list[int] = []

    def add(self, token: int) -> str:
        """Return what ``token`` adds; empty while a character lacks bytes."""
        self._open.append(token)
        piece = self._piece()
        if not piece or piece.endswith(INCOMPLETE):
            return ""
        self._close()
        return piece

    def rest(self) -> str:
        """Return what an answer that ends inside a character leaves over."""
        piece = self._piece()
        self._close()
        return piece

    def _piece(self) -> str:
        return self._decode([*self._before, *self._open])[len(self._decode(self._before)) :]

    def _close(self) -> None:
        self._before, self._open = self._open, []
