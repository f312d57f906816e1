"""The drafter ``parallel``: the pair's draft with masks behind the last token, one pass for all proposals of a round."""

from __future__ import annotations

from pathlib import Path

from harness.core.protocols import LoadedDraft
from harness.decode.cached import CachedModel
from harness.decode.drafters import Proposal, Request
from harness.decode.model_drafter import ModelDrafter
from harness.decode.sampling import log_softmax
from harness.models.blas import mx
from harness.models.parallel_masks import MaskedDraft, masked_draft


class ParallelDrafter(ModelDrafter):
    """A draft model that proposes up to ``at_once`` tokens in one pass.

    The first is what the draft says anyway; the others depend on the context alone, not on the proposals before them. Each has a
    distribution, so both acceptance rules stay exact.

    Args:
        masked: the draft with its masks.
        name: name in reports.
    """

    def __init__(self, masked: MaskedDraft, name: str = "parallel") -> None:
        super().__init__(*masked.draft.proposer, name=name)
        self.gate = masked.gate
        self.at_once = masked.masks + 1
        """Most tokens of a pass."""
        self._carried = self.at_once + 1  # no proposal has been fed: all that stood come with the next pass

    def _draw_all(self, state: CachedModel, feed: mx.array, request: Request) -> Proposal:
        k = min(request.k, self.at_once)
        true = state.offset + len(feed)
        with self.gate.of(k - 1):
            rows = state.forward(mx.concatenate([feed, mx.zeros((k - 1,), dtype=mx.int32)]), last=k)  # (k, draft vocab)
        state.trim_to(true, settled=False)
        keys = mx.random.split(request.key, request.k) if request.key is not None else [None] * k
        drawn = [self._draw(rows[i : i + 1], request, keys[i]) for i in range(k)]
        ids = mx.concatenate([token for token, _ in drawn])
        confidences: tuple[float, ...] = ()
        if request.keep_going is not None:
            confidences = asked_for(mx.take_along_axis(mx.exp(log_softmax(rows)), ids[:, None], axis=-1)[:, 0].tolist(), request)
            k = len(confidences)
        tokens = ids if self.token_map is None else self.token_map[ids]
        if request.keep_going is None:
            mx.async_eval(tokens)
        return Proposal(
            tokens=tokens[:k],
            logq=mx.concatenate([logq for _, logq in drawn[:k] if logq is not None]) if request.with_logq else None,
            token_map=self.token_map,
            logits=rows[:k] if request.with_logits else None,
            confidences=confidences,
        )


def asked_for(confidences: list[float], request: Request) -> tuple[float, ...]:
    """As many of the proposals, at least one, as the length policy would have asked for one by one."""
    assert request.keep_going is not None
    n = 1
    while n < len(confidences) and request.keep_going(tuple(confidences[:n])):
        n += 1
    return tuple(confidences[:n])


def parallel_drafter(draft: LoadedDraft, folder: Path, name: str = "parallel") -> ParallelDrafter:
    """The drafter of a folder of kind ``parallel``.

    Raises:
        HarnessError: damaged, another draft's, or a draft that takes no masks.
    """
    return ParallelDrafter(masked_draft(draft, folder), name)
