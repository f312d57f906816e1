"""What a model thinks before it answers is no part of the answer: drafts between thinking tags are never scored."""

from __future__ import annotations

import re

_NAMES = "(?:think(?:ing)?(?:_process)?|thoughts?|reason(?:ing)?(?:_content)?|reflection|scratchpad|analysis|inner_monologue|seed:think)"
_TAGS = re.compile(
    rf"(?P<open>(?:^|(?<=[\s.:!?>]))<{_NAMES}>|\[THINK\]|◁think▷|<\|(?:START_THINKING|begin_of_thought)\|>"
    r"|<\|channel\|>(?:analysis|commentary)<\|message\|>|\Aanalysis(?=[A-Z])|\AHere (?:is my thought process|are my reasoning steps):)"
    rf"|</{_NAMES}>(?![\"'`)\]}}])|\[/THINK\]|◁/think▷|<\|(?:END_THINKING|end_of_thought)\|>"
    r"|<\|channel\|>final<\|message\|>|assistantfinal|Here is my response:|\[BEGIN FINAL RESPONSE\]",
    re.IGNORECASE,
)
_WRAP = r"(?:</?(?:answer|response|output|solution)>|<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>|\[END FINAL RESPONSE\])"
_WRAPPERS = re.compile(rf"^[ \t]*{_WRAP}|{_WRAP}[ \t]*$", re.MULTILINE)


def final_part(text: str) -> str:
    """``text`` without thinking and without the tags around the answer; what an unfinished thought follows is all there is.

    A closing tag without an opening one ends a thought that the prompt began. A tag inside a code block is code.
    """
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _TAGS.finditer(text):
        if tag["open"] is None:
            kept, start, thinking = (kept if thinking else []), tag.end(), False
        elif not thinking and text.count("```", start, tag.start()) % 2 == 0:
            kept.append(text[start : tag.start()])
            thinking = True
    return _WRAPPERS.sub("\n", "".join([*kept, "" if thinking else text[start:]]))
