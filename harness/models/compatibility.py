"""Can this draft speak for this target? Same token ids for the same text, checked before any weights are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import HarnessError

PROBE = (
    "def area(r: float) -> float:\n    return 3.14159 * r ** 2  # π·r²\n\n"
    "Ünïcödé: naïve façade, e\u0301, Привет мир, 你好,世界, こんにちは, مرحبا, नमस्ते, 안녕 🎉👩‍👩‍👧\n"
    "\tTabs,  double  spaces   and 1234567.89 + 0x1F = ?\r\nDON'T we'll I'm <b>x</b> {\"key\": [1, null]} SELECT * FROM t;\n\n\n end "
)
"""Text in several scripts and code, with what tokenizers split differently: digits, spaces, accents, case, emoji."""


@dataclass(frozen=True)
class Compatibility:
    """Outcome of a check."""

    problem: str | None
    """First difference that makes the pair unusable; None when there is none."""
    notes: tuple[str, ...] = ()
    """Differences that do no harm, such as padded vocabulary sizes."""


@dataclass(frozen=True)
class _Files:
    """What the check reads of one model."""

    tokenizer: Any
    eos: str | None
    vocab_size: int | None


def check_folders(target: Path, draft: Path) -> Compatibility:
    """Compare the tokenizers of two model folders; reads config.json and tokenizer files only.

    Raises:
        HarnessError: a folder has no readable tokenizer.json or config.json.
    """
    one, two = _read(target), _read(draft)
    problem = _vocabulary(one.tokenizer, two.tokenizer) or _specials(one, two) or _round_trip(one.tokenizer, two.tokenizer)
    notes = []
    if one.vocab_size != two.vocab_size:
        notes.append(f"output layers are padded differently: target {one.vocab_size} rows, draft {two.vocab_size}")
    sizes = one.tokenizer.get_vocab_size(), two.tokenizer.get_vocab_size()
    if problem is None and sizes[0] != sizes[1]:
        notes.append(f"target knows {sizes[0]} tokens, draft {sizes[1]}; the shared ones agree")
    return Compatibility(problem, tuple(notes))


def require_compatible(target: Path, draft: Path) -> Compatibility:
    """Like :func:`check_folders`, but raise HarnessError on a problem."""
    result = check_folders(target, draft)
    if result.problem:
        raise HarnessError(
            f"target and draft do not share a tokenizer: {result.problem}",
            "Choose a draft of the target's family; `harness models suggest TARGET` names one.",
        )
    return result


def trim_problem(model: Any, role: str) -> str | None:
    """Return what is wrong when a model's cache cannot forget rejected tokens, else None. Builds an empty cache."""
    from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache

    cache = make_prompt_cache(model)
    if can_trim_prompt_cache(cache):
        return None
    kinds = sorted({type(layer).__name__ for layer in cache if not layer.is_trimmable()})
    return f"the {role}'s cache ({', '.join(kinds)}) cannot drop rejected tokens"


def _read(folder: Path) -> _Files:
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.is_file():
        raise HarnessError(f"{folder} has no tokenizer.json", "Save the model's fast tokenizer into the folder.")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise HarnessError(f"{path} is not a readable tokenizer ({error})", "Fetch the model again.") from error
    settings = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    eos = settings.get("eos_token")
    config = read_json(folder / "config.json")
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    return _Files(tokenizer, eos["content"] if isinstance(eos, dict) else eos, size)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        HarnessError: missing or malformed file.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HarnessError(f"cannot read {path}: {error}", "Fetch the model again.") from error
    if not isinstance(data, dict):
        raise HarnessError(f"{path} holds no JSON object", "Fetch the model again.")
    return data


def _vocabulary(target: Any, draft: Any) -> str | None:
    """First id that stands for different tokens, over the ids both know."""
    one, two = ({i: text for text, i in t.get_vocab(with_added_tokens=True).items()} for t in (target, draft))
    shared = sorted(one.keys() & two.keys())
    # A shared range this short means other models, whatever the shared ids say.
    if len(shared) < 0.9 * max(len(one), len(two)):
        return f"vocabulary sizes differ too much ({len(one)} and {len(two)} tokens)"
    for i in shared:
        if one[i] != two[i]:
            return f"token id {i} is {one[i]!r} for the target and {two[i]!r} for the draft"
    return None


def _specials(target: _Files, draft: _Files) -> str | None:
    if target.eos != draft.eos:
        return f"the end-of-sequence token is {target.eos!r} for the target and {draft.eos!r} for the draft"
    one, two = ({t.content: i for i, t in f.tokenizer.get_added_tokens_decoder().items() if t.special} for f in (target, draft))
    for name in sorted(one.keys() | two.keys()):
        if one.get(name) != two.get(name):
            return f"special token {name!r} has id {one.get(name)} for the target and {two.get(name)} for the draft"
    return None


def _round_trip(target: Any, draft: Any) -> str | None:
    one, two = (t.encode(PROBE, add_special_tokens=False).ids for t in (target, draft))
    for i, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            left = target.decode(one[max(0, i - 2) : i], skip_special_tokens=False)
            return f"after {left!r} the target's tokenizer continues with id {a}, the draft's with {b}"
    if len(one) != len(two):
        return f"the same text is {len(one)} tokens for the target and {len(two)} for the draft"
    return None
