"""A drafter of another package: it bets that the last two tokens alternate. All that such a package needs."""

from __future__ import annotations

from typing import Any

from harness.core.drafter_kinds import DrafterKind


class AlternatingDrafter:
    """Proposes the last two tokens in turns."""

    name = "alternating"

    def begin(self, prompt: list[int]) -> None:
        """Nothing to remember."""

    def propose(self, context: list[int], request: Any) -> Any:
        """Up to ``request.k`` tokens; None where there is nothing to say."""
        from harness.decode.drafters import Proposal
        from harness.models.blas import mx

        if len(context) < 2 or request.k == 0:
            return None
        tokens = [context[-2 + i % 2] for i in range(request.k)]
        return Proposal(tokens=mx.array(tokens, dtype=mx.int32), source="alternating")


KIND = DrafterKind(summary="the last two tokens in turns", make=lambda pair, options: AlternatingDrafter())
