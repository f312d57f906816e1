"""Streaming text: the pieces join to the whole answer, and no piece holds half a character."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from harness.decode.pieces import INCOMPLETE, TextPieces


def by_bytes(tokens: Sequence[int]) -> str:
    """A decoder of byte tokens, where 256 is a special token without text."""
    return bytes(t for t in tokens if t < 256).decode("utf-8", errors="replace")


def with_start(tokens: Sequence[int]) -> str:
    """A decoder that drops the space at the start of a text, as sentencepiece does."""
    return by_bytes(tokens).removeprefix(" ")


@given(st.text(alphabet=st.characters(exclude_characters=INCOMPLETE, exclude_categories=("Cs",))))
def test_pieces_join_to_the_text(text: str) -> None:
    """Whatever the text, nothing is lost, doubled or shown before its last byte came."""
    for decode in (by_bytes, with_start):
        pieces = TextPieces(decode)
        shown = [pieces.add(token) for token in [*text.encode(), 256]]
        assert not any(INCOMPLETE in piece for piece in shown)
        assert "".join(shown) + pieces.rest() == decode(list(text.encode()))


@given(st.lists(st.integers(0, 256), max_size=40))
def test_broken_bytes_are_shown_in_the_end(tokens: list[int]) -> None:
    """A random model emits impossible byte sequences: the stream still gives all that the whole answer gives."""
    pieces = TextPieces(by_bytes)
    joined = "".join(pieces.add(token) for token in tokens) + pieces.rest()
    assert joined.replace(INCOMPLETE, "") == by_bytes(tokens).replace(INCOMPLETE, "")


def test_pieces_come_at_once() -> None:
    """Text must not wait for a later token when it is complete; spaces between words stay."""
    pieces = TextPieces(with_start)
    assert [pieces.add(token) for token in b" a b"] == ["", "a", " ", "b"]
    assert [pieces.add(token) for token in "é".encode()] == ["", "é"]
