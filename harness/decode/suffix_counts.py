"""What followed each run of tokens in known texts: an automaton over their suffixes, built with numpy, walked in microseconds.

A state stands for a context of 2 to 8 tokens and holds what followed it most often, how often, and the state after that token. A
context whose occurrences are just those of its shorter suffix says nothing new and has no state, so there are about as many states as
tokens. The longest known suffix of a context is found by hash and bisection; every further token is one step along the stored links.
Of many texts the most useful states can be kept alone: most states have been met once, and few of those are met again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SHORTEST, LONGEST = 2, 8
"""Tokens of a context."""
END = -1
"""Stands after the last token of every text."""
DOUBT = 0.5
"""Added to the number of occurrences when a share is computed: what was seen once is not certain."""
AGREES = 0.15
"""What a state is worth, of one that proposes something new, where its longest known suffix proposes the same token."""
_FACTOR = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


@dataclass(frozen=True, kw_only=True)
class SuffixCounts:
    """The automaton; arrays have one entry per state, sorted by ``keys``."""

    keys: np.ndarray
    """(n,) uint64 hash of the context."""
    following: np.ndarray
    """(n,) int32 token that followed most often; the latest of equals."""
    links: np.ndarray
    """(n,) int32 state of the longest known suffix after that token; -1 for none."""
    shares: np.ndarray
    """(n,) uint16 share of the occurrences that this token followed, in 1/65535."""


def count_suffixes(text: np.ndarray, starts: np.ndarray, said: np.ndarray, most_states: int | None = None) -> SuffixCounts:
    """Build the automaton.

    Args:
        text: (n,) int32 tokens of all texts, each of them followed by ``END``.
        starts: (texts,) where each text begins.
        said: (texts,) tokens at the beginning of each text that are context only, never predicted.
        most_states: only so many are kept, those whose token followed most often; a link to another goes to its longest kept suffix.
    """
    if not len(starts):
        types = {"keys": np.uint64, "following": np.int32, "links": np.int32, "shares": np.uint16}
        return SuffixCounts(**{name: np.zeros(0, dtype=dtype) for name, dtype in types.items()})
    return _Builder(text, starts, said).build(most_states)


class _Builder:
    """Grows contexts token by token; places are indices into the positions where something is predicted, ends of texts included."""

    def __init__(self, text: np.ndarray, starts: np.ndarray, said: np.ndarray) -> None:
        lengths = np.diff(np.append(starts, len(text)))
        depth = np.arange(len(text)) - np.repeat(starts, lengths)
        self.at = np.flatnonzero(depth >= np.maximum(np.repeat(said, lengths), 1))
        self.text = text.astype(np.int64)
        self.depth = depth[self.at]
        self.next = self.text[self.at]
        self.size = int(self.text.max(initial=0)) + 2
        self.state = np.full(len(self.at), -1, dtype=np.int64)
        """Longest state met so far at every place."""
        self.columns: list[tuple[np.ndarray, ...]] = []
        self.states = 0

    def build(self, most_states: int | None) -> SuffixCounts:
        places = np.arange(len(self.at))
        groups, hashes = np.zeros(len(places), dtype=np.int64), np.zeros(len(places), dtype=np.uint64)
        counts = np.array([len(places) + 1])
        links: list[np.ndarray] = []
        met = np.zeros(0, dtype=np.int64)  # where the states of the length before were met, followed by the token they predict
        for length in range(1, LONGEST + 1):
            inside = self.depth[places] >= length
            places, groups, hashes = places[inside], groups[inside], hashes[inside]
            token = self.text[self.at[places] - length]
            hashes = hashes * np.uint64(_FACTOR) + (token + 1).astype(np.uint64)
            mixed = groups * self.size + token
            _, first, inverse = np.unique(mixed, return_index=True, return_inverse=True)
            own = np.bincount(inverse[self.next[places] != END], minlength=len(first))
            new = (own > 0) if length <= SHORTEST else (own > 0) & (own < counts[groups[first]])
            before, met = met, np.zeros(0, dtype=np.int64)
            if length >= SHORTEST:
                met = self._add(places, inverse, own, new, first[new], hashes[first[new]])
            links.append(self.state[before + 1])
            several = own[inverse] > (length >= SHORTEST)  # what is seen once has one continuation, however long the context
            places, groups, hashes, counts = places[several], inverse[several], hashes[several], own
        links.append(self.state[met + 1])
        return self._sorted(np.concatenate(links), most_states)

    def _add(
        self, places: np.ndarray, groups: np.ndarray, own: np.ndarray, new: np.ndarray, first: np.ndarray, hashes: np.ndarray
    ) -> np.ndarray:
        """Make a state of each new group; return where it was met, followed by the token it predicts."""
        shorter = self.state[places[first]]
        mine = np.where(new, self.states + np.cumsum(new) - 1, -1)[groups]
        self.state[places[mine >= 0]] = mine[mine >= 0]
        seen = np.flatnonzero((mine >= 0) & (self.next[places] != END))[::-1]
        pairs, index, times = np.unique(groups[seen] * self.size + self.next[places[seen]], return_index=True, return_counts=True)
        latest = places[seen[index]]
        order = np.lexsort((latest, times, pairs // self.size))
        best = order[np.diff(pairs[order] // self.size, append=-1) != 0]  # the last of each new group, in the order of groups
        shares = np.round(65535 * times[best] / (own[new] + DOUBT))
        self.columns.append((hashes, self.next[latest[best]], shares, times[best], shorter))
        self.states += len(best)
        return latest[best]

    def _sorted(self, links: np.ndarray, most_states: int | None) -> SuffixCounts:
        keys, following, shares, times, shorter = (np.concatenate(column) for column in zip(*self.columns, strict=True))
        kept = np.ones(len(keys), dtype=bool)
        if most_states is not None and most_states < len(keys):
            agrees = (shorter >= 0) & (following[shorter] == following)
            kept[np.argsort(-times * np.where(agrees, AGREES, 1.0), kind="stable")[most_states:]] = False
            links = np.append(_nearest(kept, shorter), -1)[links]
        order = np.flatnonzero(kept)
        order = order[np.argsort(keys[order], kind="stable")]
        place = np.full(len(keys) + 1, -1, dtype=np.int64)
        place[order] = np.arange(len(order))
        return SuffixCounts(
            keys=keys[order],
            following=following[order].astype(np.int32),
            links=place[links[order]].astype(np.int32),
            shares=shares[order].astype(np.uint16),
        )


def _nearest(kept: np.ndarray, shorter: np.ndarray) -> np.ndarray:
    """The longest kept state of each state and its suffixes, of which ``shorter`` names the next; -1 for none."""
    found = np.where(kept, np.arange(len(kept)), shorter)
    for _ in range(LONGEST - SHORTEST):
        found = np.where((found >= 0) & ~kept[found], shorter[found], found)
    return found


class Walker:
    """Finds states and walks along their links, over one automaton or several; of equally long suffixes the first one's counts.

    A state of the second automaton has the number of states of the first added to it, and so on.
    """

    def __init__(self, *counts: SuffixCounts) -> None:
        # Views: reading one element of them takes a third of the time of a numpy array's.
        self._parts = [(c.keys.data, c.following.data, c.links.data, c.shares.data) for c in counts]

    def find(self, context: Sequence[int]) -> tuple[int, int]:
        """State of the longest known suffix of ``context``, and the shortest length with that state's occurrences; (-1, 0) for none."""
        key, keys = 0, []
        for token in reversed(context[-LONGEST:]):
            key = (key * _FACTOR + token + 1) & _MASK
            keys.append(key)
        for length in range(len(keys), SHORTEST - 1, -1):
            wanted, before = keys[length - 1], 0
            for states, *_ in self._parts:
                place = bisect_left(states, wanted)
                if place < len(states) and states[place] == wanted:
                    return before + place, length
                before += len(states)
        return -1, 0

    def walk(self, state: int, most: int, threshold: float) -> tuple[list[int], list[float]]:
        """Tokens that followed ``state``, each with its share, while the product of the shares is at least ``threshold``."""
        tokens: list[int] = []
        taken: list[float] = []
        parts = iter(self._parts)
        keys, following, links, shares = next(parts)
        while state >= len(keys):
            state -= len(keys)
            keys, following, links, shares = next(parts)
        survive = 1.0
        while state >= 0 and len(tokens) < most:
            share = shares[state] / 65535
            survive *= share
            if survive < threshold:
                break
            tokens.append(following[state])
            taken.append(share)
            state = links[state]
        return tokens, taken
