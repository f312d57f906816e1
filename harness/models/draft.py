"""A draft: the model that proposes, and what it may propose."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass, replace

from harness.models.blas import mx, nn
from harness.models.opened import fit_vocabulary
from harness.models.translation import Translation


@dataclass
class Draft:
    """A model that proposes tokens for a target."""

    model: nn.Module
    """``model(tokens (1, n), cache=cache)`` returns logits (1, n, V_draft); has ``.layers``."""
    token_map: mx.array | None
    """(V_draft,) int32: draft id to target id where the draft's output vocabulary is pruned; None is the identity."""
    hash: str
    """SHA-256 that identifies the weights."""
    name: str
    """Where it came from, for reports."""
    vocab: tuple[int, ...] | None = None
    """Target ids that drafting is restricted to, besides those of prompt and answer; None is whatever the model's own head names."""
    target_rows: int | None = None
    """How many ids the target has, once :meth:`fit` knows."""
    translation: Translation | None = None
    """Between its tokens and the target's, where the two have different tokenizers; such a draft keeps its own ids."""
    context_tokens: int | None = None
    """Most of its own tokens that a translated draft can hold."""

    def fit(self, rows: int) -> None:
        """Keep to the ids of a target that has ``rows`` of them: what the model names beyond them is cut off, once and for all."""
        if self.target_rows == rows or self.translation is not None:
            return
        self.target_rows = rows
        if self.token_map is None:
            self.model = fit_vocabulary(self.model, rows)
            vars(self).pop("proposer", None)

    def with_model(self, model: nn.Module) -> Draft:
        """The same draft running another model of its kind."""
        return replace(self, model=model)

    @functools.cached_property
    def proposer(self) -> tuple[nn.Module, mx.array | None]:
        """What drafts, and its token map: the model, its head restricted to ``vocab`` where the pair asks for that."""
        from harness.models.forward import PrunedHead

        if self.vocab is None:
            return self.model, self.token_map
        head = PrunedHead(self.model, self.vocab, own_head=self.token_map is not None)
        return head, head.token_map

    @property
    def vocab_hash(self) -> str | None:
        """SHA-256 of ``vocab``."""
        return None if self.vocab is None else hashlib.sha256(json.dumps(self.vocab).encode()).hexdigest()
