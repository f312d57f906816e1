"""Deterministic train / validation / test splits that near-duplicates cannot straddle, and the leak check. Standard library only.

A prompt's split follows from a stable hash of its normalised text. Near-duplicates (Jaccard similarity of word trigrams at least
0.8) and samples of one group (problems generated from one template) form clusters; a whole cluster goes where its smallest hash
points. The similarity join is exact: two sets that similar must share one of their rarest trigrams (prefix filter), so only
those pairs are compared.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from harness.core.errors import HarnessError
from harness.core.records import Sample

SPLITS = ("train", "validation", "test")
SHARES = (0.6, 0.1, 0.3)
"""Expected share of each split."""
THRESHOLD = 0.8
"""Jaccard similarity from which two prompts are near-duplicates."""
GROUP_KEY = "template"
"""Key of ``Sample.reference`` that names the generator's template."""

_SHINGLE_WORDS = 3
_ROUNDING = 1e-9


def normalise(prompt: str) -> str:
    """Return the prompt NFKC-normalised, lower-cased, with runs of white space collapsed; digits are kept."""
    return " ".join(unicodedata.normalize("NFKC", prompt).lower().split())


def prompt_digest(prompt: str) -> str:
    """A prompt as 16 hexadecimal digits, whatever its white space and capitals: to know it again without keeping it."""
    return f"{_hash(normalise(prompt)):016x}"


def assign_splits(samples: Sequence[Sample], *, shares: Sequence[float] = SHARES, pinned: Mapping[str, str] | None = None) -> list[Sample]:
    """Return the samples with their ``split`` set; the result does not depend on their order.

    Args:
        samples: a whole dataset; splits are only safe from duplicates inside one call.
        shares: expected fractions of train, validation and test.
        pinned: sample id to split, for samples whose split is given from outside; their near-duplicates follow them.
    """
    hashes = [_hash(_group(s) or normalise(s.prompt)) for s in samples]
    clusters = _clusters(samples)
    result = list(samples)
    for members in clusters:
        given = sorted({pinned[samples[i].id] for i in members if samples[i].id in pinned}) if pinned else []
        split = given[-1] if given else _split_at(min(hashes[i] for i in members), shares)
        for i in members:
            own = pinned.get(samples[i].id) if pinned else None
            result[i] = replace(samples[i], split=own or split)
    return result


def cluster_labels(samples: Sequence[Sample]) -> list[int]:
    """Return one label per sample, equal for near-duplicates and template siblings: what folds of an evaluation must not split."""
    labels = [0] * len(samples)
    for label, members in enumerate(_clusters(samples)):
        for i in members:
            labels[i] = label
    return labels


def near_duplicates(prompts: Sequence[str], threshold: float = THRESHOLD) -> list[tuple[int, int]]:
    """Return all index pairs (i < j) of prompts whose word-trigram Jaccard similarity is at least ``threshold``."""
    pairs: set[tuple[int, int]] = set()
    for left, right in _links([_shingles(p) for p in prompts], threshold):
        pairs.update((min(i, j), max(i, j)) for i in left for j in right if i != j)
    return sorted(pairs)


def leaks(train: Sequence[Sample], evaluation: Sequence[Sample]) -> list[tuple[str, str]]:
    """Return (train id, evaluation id) for every evaluation sample that has a near-duplicate or template sibling in ``train``.

    One pair per evaluation sample, with the smallest train id.
    """
    found: dict[str, str] = {}

    def note(train_ids: Sequence[str], eval_ids: Sequence[str]) -> None:
        if train_ids:
            found.update({e: min([*train_ids, *([found[e]] if e in found else [])]) for e in eval_ids})

    groups: dict[str, list[str]] = defaultdict(list)
    for sample in train:
        if group := _group(sample):
            groups[group].append(sample.id)
    for sample in evaluation:
        note(groups.get(_group(sample) or "", []), [sample.id])
    both = [*train, *evaluation]
    for left, right in _links([_shingles(s.prompt) for s in both], THRESHOLD):
        members = {*left, *right}
        note([both[i].id for i in members if i < len(train)], [both[i].id for i in members if i >= len(train)])
    return sorted((t, e) for e, t in found.items())


def refuse_leaks(train: Sequence[Sample], evaluation: Sequence[Sample]) -> None:
    """Raise when a training sample leaks into the evaluation samples.

    Raises:
        HarnessError: names the ids of the first pairs.
    """
    pairs = leaks(train, evaluation)
    if pairs:
        shown = ", ".join(f"{t} and {e}" for t, e in pairs[:3]) + (f" and {len(pairs) - 3} more" if len(pairs) > 3 else "")
        raise HarnessError(
            f"training data leaks into the evaluation: {shown} are near-duplicates or come from one template",
            "Take both from one dataset's splits, or remove these prompts from the training file.",
        )


def _group(sample: Sample) -> str | None:
    template = (sample.reference or {}).get(GROUP_KEY)
    return f"{sample.source}:{template}" if template else None


def _hash(text: str) -> int:
    """Stable 64-bit hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def _split_at(value: int, shares: Sequence[float]) -> str:
    position = value / 2**64 * sum(shares)
    for split, share in zip(SPLITS, shares, strict=True):
        if position < share:
            return split
        position -= share
    return SPLITS[max(i for i, share in enumerate(shares) if share > 0)]


def _shingles(prompt: str) -> frozenset[str]:
    text = normalise(prompt)
    words = re.findall(r"\w+", text)
    if len(words) < _SHINGLE_WORDS:
        return frozenset([text])
    return frozenset(" ".join(words[i : i + _SHINGLE_WORDS]) for i in range(len(words) - _SHINGLE_WORDS + 1))


def _links(sets: Sequence[frozenset[str]], threshold: float) -> Iterator[tuple[list[int], list[int]]]:
    """Yield (indices, indices) of equal sets, then of each pair of distinct sets with similarity at least ``threshold``."""
    equal: dict[frozenset[str], list[int]] = defaultdict(list)
    for i, shingles in enumerate(sets):
        equal[shingles].append(i)
    yield from ((same, same) for same in equal.values() if len(same) > 1)
    frequency = Counter(shingle for shingles in equal for shingle in shingles)
    index: dict[str, list[frozenset[str]]] = defaultdict(list)
    for shingles in sorted(equal, key=len):
        needed = math.ceil(threshold * len(shingles) - _ROUNDING)
        rarest = sorted(shingles, key=lambda s: (frequency[s], s))[: len(shingles) - needed + 1]
        for other in {other for shingle in rarest for other in index[shingle] if len(other) >= needed}:
            common = len(shingles & other)
            if common >= threshold * (len(shingles) + len(other) - common) - _ROUNDING:
                yield equal[shingles], equal[other]
        for shingle in rarest:
            index[shingle].append(shingles)


def _clusters(samples: Sequence[Sample]) -> list[list[int]]:
    """Connected components of near-duplicates and groups, as lists of indices."""
    parent = list(range(len(samples)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, sample in enumerate(samples):
        group = _group(sample)
        if group:
            parent[root(i)] = root(first.setdefault(group, i))
    for left, right in _links([_shingles(s.prompt) for s in samples], THRESHOLD):
        for i in (*left, *right):
            parent[root(i)] = root(left[0])
    members: dict[int, list[int]] = defaultdict(list)
    for i in range(len(samples)):
        members[root(i)].append(i)
    return list(members.values())
