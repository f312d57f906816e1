"""Can this draft speak for this target? Same token ids for the same text, or text that both tokenizers keep; checked before any weights
are read.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.errors import HarnessError
from harness.models.folder import read_config, text_config
from harness.models.tokenizer_check import FETCH, check_tokenizer

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
    """First difference by which the same ids mean other text; None when there is none."""
    notes: tuple[str, ...] = ()
    """Differences that do no harm, such as padded vocabulary sizes."""
    lost: str | None = None
    """Where there is a problem: why the draft's text cannot be put into the target's tokens either. None where it can be."""

    @property
    def translated(self) -> bool:
        """The draft's text has to be put into the target's tokens, and can be."""
        return self.problem is not None and self.lost is None


@dataclass(frozen=True)
class _Files:
    """What the check reads of one model."""

    tokenizer: Any
    eos: str | None
    vocab_size: int | None
    used: frozenset[str]
    """Marker tokens that stand in prompts and end answers: those of its settings and of its chat template."""


def check_folders(target: Path, draft: Path) -> Compatibility:
    """Compare the tokenizers of two model folders; reads config.json and tokenizer files only.

    Raises:
        HarnessError: a folder has no readable tokenizer.json or config.json.
    """
    one, two = _read(target), _read(draft)
    with files.reading(f"the tokenizers of {target} and {draft}", advice=FETCH):
        problem = _vocabulary(one, two) or _specials(one, two) or _round_trip(one.tokenizer, two.tokenizer)
        lost = problem and (_loses("target", one.tokenizer) or _loses("draft", two.tokenizer))
    notes = []
    if one.vocab_size != two.vocab_size:
        notes.append(f"output layers are padded differently: target {one.vocab_size} rows, draft {two.vocab_size}")
    sizes = one.tokenizer.get_vocab_size(), two.tokenizer.get_vocab_size()
    if problem is None and sizes[0] != sizes[1]:
        notes.append(f"target knows {sizes[0]} tokens, draft {sizes[1]}; the shared ones agree")
    return Compatibility(problem, tuple(notes), lost)


def require_compatible(target: Path, draft: Path, *, translate: bool = True) -> Compatibility:
    """Like :func:`check_folders`, but raise HarnessError on a problem, unless ``translate`` allows what gets around it."""
    result = check_folders(target, draft)
    if result.problem and not (translate and result.translated):
        raise HarnessError(
            f"target and draft do not share a tokenizer: {result.problem}" + (f"; {result.lost}" if result.lost else ""),
            "Choose a draft of the target's family; `harness models suggest TARGET` names one.",
        )
    return result


def _read(folder: Path) -> _Files:
    from tokenizers import Tokenizer

    path, more = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not os.path.lexists(path):
        raise HarnessError(f"{folder} has no tokenizer.json", "Save the model's fast tokenizer into the folder.")
    check_tokenizer(folder)
    with files.reading(path, advice=FETCH):
        tokenizer = Tokenizer.from_file(str(path))
        tokenizer.no_padding()
        tokenizer.no_truncation()
    settings = files.read_json(more, advice=FETCH) if os.path.lexists(more) else {}
    eos = _content(settings.get("eos_token"))
    if eos is not None and not isinstance(eos, str):
        raise HarnessError(f"{more}: eos_token is no text", FETCH)
    template = folder / "chat_template.jinja"
    text = str(settings.get("chat_template")) + (files.read_text(template, advice=FETCH) if os.path.lexists(template) else "")
    named = [_content(settings.get(f"{kind}_token")) for kind in ("bos", "eos", "unk", "cls", "sep")]
    used = frozenset(t for t in _markers(tokenizer) if t in named or t in text)
    return _Files(tokenizer, eos, text_config(read_config(folder), folder / "config.json").get("vocab_size"), used)


def _content(token: Any) -> Any:
    """Text of a token as tokenizer_config.json writes it."""
    return token.get("content") if isinstance(token, dict) else token


def _markers(tokenizer: Any) -> dict[str, int]:
    """Added tokens that text reaches only by naming them: special ones, and names in brackets; text -> id."""
    added = tokenizer.get_added_tokens_decoder()
    return {t.content: i for i, t in added.items() if t.special or re.fullmatch(r"<.*>|\[.*\]", t.content)}


def _vocabulary(target: _Files, draft: _Files) -> str | None:
    """First id that stands for different tokens, over the ids both know.

    A marker that neither prompts nor answers of the target hold, such as a reserved one, may have another name.
    """
    one, two = ({i: text for text, i in f.tokenizer.get_vocab(with_added_tokens=True).items()} for f in (target, draft))
    shared = sorted(one.keys() & two.keys())
    # A shared range this short means other models, whatever the shared ids say.
    if len(shared) < 0.9 * max(len(one), len(two)):
        return f"vocabulary sizes differ too much ({len(one)} and {len(two)} tokens)"
    idle = _markers(target.tokenizer).keys() - target.used
    markers = _markers(draft.tokenizer)
    for i in shared:
        if one[i] != two[i] and not (one[i] in idle and two[i] in markers):
            return f"token id {i} is {one[i]!r} for the target and {two[i]!r} for the draft"
    return None


def _specials(target: _Files, draft: _Files) -> str | None:
    if target.eos != draft.eos:
        return f"the end-of-sequence token is {target.eos!r} for the target and {draft.eos!r} for the draft"
    for name in sorted(target.used):
        one, two = (f.tokenizer.token_to_id(name) for f in (target, draft))
        if one != two:
            return f"special token {name!r} has id {one} for the target and {two} for the draft"
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


def _loses(role: str, tokenizer: Any) -> str | None:
    """What a tokenizer makes of text that does not come back as it went in, forms of one character and outer spaces aside."""
    back = tokenizer.decode(tokenizer.encode(PROBE, add_special_tokens=False).ids, skip_special_tokens=False)
    one, two = (unicodedata.normalize("NFKC", text).strip() for text in (PROBE, back))
    if one == two:
        return None
    at = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return f"the {role}'s tokenizer makes {two[at : at + 10]!r} of {one[at : at + 10]!r}, so text cannot stand between the two"
