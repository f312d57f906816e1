"""Ending an answer at the first of some texts, which does not appear in it."""

from __future__ import annotations

from collections.abc import Sequence


class StopWords:
    """Passes a text on, piece by piece, up to the first stop word; what may be the beginning of one waits for the next piece.

    Args:
        words: texts that end the answer; none passes everything on.
    """

    def __init__(self, words: Sequence[str] = ()) -> None:
        self._words = [word for word in words if word]
        self._held = ""
        self.found: str | None = None
        """The word that ended the text."""

    def add(self, piece: str) -> str:
        """Return what can be shown after this piece; nothing once a word was found."""
        if self.found is not None:
            return ""
        text = self._held + piece
        found = [(at, word) for word in self._words if (at := text.find(word)) >= 0]
        if found:  # the first that is complete, as if the text had come letter by letter
            at, self.found = min(found, key=lambda one: (one[0] + len(one[1]), one[0]))
            self._held = ""
            return text[:at]
        longest = max((len(word) - 1 for word in self._words), default=0)
        start = next(
            (i for i in range(max(0, len(text) - longest), len(text)) if any(word.startswith(text[i:]) for word in self._words)), len(text)
        )
        self._held = text[start:]
        return text[:start]

    def rest(self) -> str:
        """What still waits when the text ends without a stop word."""
        held, self._held = self._held, ""
        return held
