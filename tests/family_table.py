"""Writes the table of model types in docs/models.md, found by running tiny models: ``python tests/family_table.py``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from all_families import ALL
from families import FAMILIES, tiny_model
from toy import ToyPair, noisy, toy_draft

from harness.adapt.adapters.surface import check_surface
from harness.core.errors import HarnessError
from harness.core.records import Trajectory
from harness.decode.generation import generate
from harness.decode.making import DrafterOptions, resolve_drafter
from harness.decode.replay import replay
from harness.models.blas import mx, one_stream

DOC = Path(__file__).parent.parent / "docs" / "models.md"
PROMPT = [9, 33, 9, 12, 9, 33]
TOKENS = 32
"""Tokens of an answer: four windows."""
K = 4


def not_here(family: str) -> str | None:
    """Why a model cannot run on this machine at all."""
    if family == "bitnet" and not mx.metal.is_available():
        return "mlx-lm runs it on Metal alone"
    return None


def tiny_pair(family: str) -> ToyPair:
    """A random model of a family and a noisy copy as its draft."""
    return ToyPair(tiny_model(family), toy_draft(noisy(tiny_model(family))))


def plain(model: Any) -> tuple[int, ...]:
    """The greedy answer of mlx-lm's own loop and caches."""
    from mlx_lm.generate import generate_step

    return tuple(token for token, _ in generate_step(mx.array(PROMPT), model, max_tokens=TOKENS, **one_stream()))


def checked(family: str) -> dict[str, str]:
    """Whether decoding equals plain decoding, and replay decoding: ``yes``, or what is wrong."""
    pair = tiny_pair(family)
    expected = plain(pair.target)
    found = {drafter: generate(pair, PROMPT, drafter=drafter, k=K, max_tokens=TOKENS) for drafter in ("lookup", "generic")}
    wrong = [drafter for drafter, g in found.items() if g.tokens != expected]
    same = replayed(pair, "generic", found["generic"])
    return {"decode": "yes" if not wrong else f"differs with {', '.join(wrong)}", "replay": "yes" if same else "differs"}


def replayed(pair: ToyPair, drafter: Any, g: Any) -> bool:
    """Whether replay gives the rounds of a decoded answer."""
    t = Trajectory(sample_id="a", domain="d", prompt_tokens=tuple(PROMPT), tokens=g.tokens, finish=g.finish, max_tokens=TOKENS)
    (row,) = replay(pair, [t], [drafter], [K])
    return (row.accept_lengths, row.draft_lengths) == (g.accept_lengths, g.draft_lengths)


def _works(check: Callable[[], Any]) -> str:
    try:
        return "yes" if check() in (True, None) else "differs"
    except HarnessError as error:
        return "no" if "its parts do not give its logits" in error.problem else "no: " + _reason(error.problem)


def _reason(problem: str) -> str:
    if "sliding" in problem:
        return "sliding windows"
    if "has no" in problem or "changes its logits" in problem:
        return "other layout"
    return "other blocks"


def early_exit(family: str) -> bool:
    """Whether the first layers draft, and replay counts them as decoding does."""
    pair = tiny_pair(family)
    drafter = resolve_drafter(pair, "early_exit", DrafterOptions(layers=max(1, len(pair.target.layers) // 2)))
    return replayed(pair, drafter, generate(pair, PROMPT, drafter=drafter, k=K, max_tokens=TOKENS))


def row(family: str) -> str:
    """The family's line of the table."""
    if (reason := not_here(family)) is not None:
        return f"| `{family}` | {reason} | - | - | - | - |"
    cells = checked(family)
    pruned = _works(lambda: resolve_drafter(tiny_pair(family), "generic", DrafterOptions(vocab=24)) and None)
    early, train = _works(lambda: early_exit(family)), _works(lambda: check_surface(tiny_model(family)))
    return f"| `{family}` | {cells['decode']} | {cells['replay']} | {pruned} | {early} | {train} |"


def _told(line: str) -> str:
    print(line, flush=True)
    return line


def main() -> None:
    """Run every family and write the table."""
    rows = dict.fromkeys(_told(row(family)) for family in sorted((*FAMILIES, *ALL), key=str.lower))
    table = "| model type | decode | replay | smaller head | early exit | train |\n|---|---|---|---|---|---|\n" + "\n".join(rows)
    text = re.sub(r"\| model type \|.*?\n(?=\n|\Z)", lambda _: table + "\n", DOC.read_text(encoding="utf-8"), flags=re.S)
    DOC.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
