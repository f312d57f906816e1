"""The program in an answer is found as a person would find it, in whatever shape a model gives it, and in linear time."""

from __future__ import annotations

import ast
import contextlib
import sys
import textwrap
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.scoring import agreement, sandbox_status
from harness.scoring.code_tests import score_code
from harness.scoring.final_number import final_number
from harness.scoring.reader import assemble
from harness.scoring.result import Score
from harness.scoring.thinking import final_part
from tests.humaneval_problems import problems

PROMPT = 'import math\nfrom typing import List\n\n\ndef helper(x):\n    return x\n\n\ndef solve(n: int) -> int:\n    """Return n + 1."""\n'
TEST = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(helper(5)) == 6\n"
REFERENCE = {"prompt": PROMPT, "test": TEST, "entry_point": "solve"}
FULL = "def solve(n: int) -> int:\n    return helper(n) + int(math.sqrt(1))\n"
WRONG = "def solve(n):\n    return n - 1\n"
DOCSTRING = 'def solve(n):\n    """Add one.\n\n    ```python\n    solve(1)\n    ```\n    """\n    return n + 1\n'
LOOSE_DOCSTRING = 'def solve(n):\n    """Add one.\n\n```\nsolve(1)\n```\n"""\n    return n + 1\n'


def blocks(*codes: str) -> str:
    """An answer of several code blocks."""
    return "\nThen:\n".join(f"```python\n{code}\n```" for code in codes)


ANSWERS = {
    "fenced": f"Here it is:\n\n```python\n{FULL}```\nIt adds one.",
    "fenced_without_language": f"```\n{FULL}```",
    "fenced_upper_case": f"```Python\n{FULL}```",
    "fenced_py": f"```py\n{FULL}```",
    "tildes": f"~~~python\n{FULL}~~~",
    "windows_line_ends": f"Sure!\r\n```python\r\n{FULL}```\r\n".replace("\n", "\r\n").replace("\r\r", "\r"),
    "unclosed_fence": f"```python\n{FULL}",
    "cut_off_after_the_function": f"```python\n{FULL}\n\ndef another(x):\n    return [x for",
    "cut_off_in_a_string": f'```python\n{FULL}\n\nprint("solve',
    "indented_fence": "1. Code:\n\n" + textwrap.indent(f"```python\n{FULL}```", "   "),
    "example_block_first": f"Call it so:\n```python\nsolve(1)\n```\nwith\n```python\n{FULL}```",
    "example_block_last": f"```python\n{FULL}```\nThen:\n```python\nprint(solve(1))\n```",
    "shell_block_first": f"```bash\npip install x\n```\n```python\n{FULL}```",
    "broken_block_first": f"```python\ndef solve(n:\n```\nCorrected:\n```python\n{FULL}```",
    "raw_code": FULL,
    "raw_code_between_prose": f"Sure, here is the function:\n\n{FULL}\nThis works because it adds one.",
    "whole_program": f"```python\n{PROMPT}    return n + 1\n```",
    "own_imports": "```python\nimport operator\n\ndef solve(n):\n    return operator.add(n, 1)\n```",
    "assignment": "```python\nsolve = lambda n: n + 1\n```",
    "body": "    return n + 1\n",
    "body_without_first_indent": "result = n + 1\n    return result\n",
    "body_without_indent": "result = n + 1\nreturn result\n",
    "fenced_body": "```python\n    return n + 1\n```",
    "fenced_body_without_indent": "```python\nif n:\n    return n + 1\nreturn 1\n```",
    "body_then_prose": "    return n + 1\n\nThis function adds one to its argument.",
    "body_then_next_function": "    return n + 1\n\n\ndef other(x):\n    return (x",
    "glued": f"```python\n{FULL.rstrip()}```",
    "glued_then_text": f"```python\n{FULL.rstrip()}``` That is it.",
    "glued_then_example": f"```python\n{FULL.rstrip()}```\nExample:\n```python\nprint(solve(1))\n```",
    "one_line": "```python def solve(n): return n + 1```",
    "one_line_nolang": "```def solve(n): return n + 1```",
    "one_line_in_prose": "The answer is ```solve = lambda n: n + 1```.",
    "span": "Use `def solve(n): return n + 1` here.",
    "open_in_prose": f"Sure! ```python\n{FULL}```\nDone.",
    "code_on_the_fence_line": "```python def solve(n):\n    return n + 1\n```",
    "code_on_the_fence_line_nolang": "```def solve(n):\n    return n + 1\n```",
    "four": f"````python\n{FULL}````",
    "four_outer_markdown": f"````markdown\n# Solution\n\n```python\n{FULL}```\n\nDone.\n````\nBye.",
    "four_outer_nolang": f"````\nText\n```python\n{FULL}```\n````",
    "five_outer_four_inner": f"`````md\nText\n````python\n{FULL}````\n`````",
    "three_outer_markdown": f"```markdown\n# Solution\n```python\n{FULL}```\n```\nBye.",
    "twice_opened": f"```\n```python\n{FULL}```\n```",
    "tilde_outer": f"~~~markdown\n```python\n{FULL}```\n~~~",
    "tilde_with_backticks_inside": f"~~~python\n{DOCSTRING}~~~",
    "quoted": "> Here:\n>\n" + textwrap.indent(f"```python\n{FULL}```", "> "),
    "list_fence": f"- Code:\n  ```python\n{textwrap.indent(FULL, '  ')}  ```",
    "list_mark_fence": f"1. ```python\n{textwrap.indent(FULL, '   ')}   ```",
    "prose_from": f"from the examples we see that one is added.\n\n{FULL}",
    "prose_import": f"import nothing special here, just add.\n{FULL}\nclass dismissed.",
    "prose_class": f"class of problems: arithmetic.\n\n{FULL}\nfrom here it is easy.",
    "prose_def": f"def is short for define.\n\n{FULL}",
    "prose_bracket": f"Here is the code (it is short:\n\n{FULL}\nDone :)",
    "prose_quotes": f'It\'s easy, the """ starts the docstring.\n\n{FULL}',
    "prose_python": f"Sure\nThis and that\nNote: simple\n{FULL}\nDone\n",
    "prose_imports_raw": "Sure:\n\nimport operator\n\nADD = operator.add\n\ndef solve(n):\n    return ADD(n, 1)\n\nThat's all.",
    "docstring_fence": f"```python\n{DOCSTRING}```\nDone.",
    "docstring_fence_unindented": f"```python\n{LOOSE_DOCSTRING}```\nDone.",
    "docstring_fence_unclosed": f"```python\n{DOCSTRING}",
    "comment_fence": "```python\ndef solve(n):\n    # ```\n    # solve(1)\n    # ```\n    return n + 1\n```",
    "string_fence": "```python\ndef solve(n):\n    s = '```'\n    return n + len(s) // 3\n```",
    "bom": f"\ufeff{FULL}",
    "bom_fence": f"\ufeff```python\n\ufeff{FULL}```",
    "cr": f"```python\n{FULL}```".replace("\n", "\r"),
    "crlf_raw_body": "    x = n\r\n    return x + 1\r\n",
    "corrected_later": f"```python\n{WRONG}```\nWait, that is wrong. Corrected:\n```python\n{FULL}```",
    "corrected_raw": f"{WRONG}\n\nOops, that is wrong.\n\n{FULL}",
    "corrected_same_block": f"```python\n{WRONG}\n\n{FULL}```",
    "later_stub": f"```python\n{FULL}```\nThe skeleton was:\n```python\ndef solve(n):\n    pass\n```",
    "later_stub_ellipsis": f"```python\n{FULL}```\nSignature:\n```python\ndef solve(n: int) -> int: ...\n```",
    "later_stub_same_block": f"```python\n{FULL}\n\ndef solve(n):\n    raise NotImplementedError\n```",
    "later_broken": f"```python\n{FULL}```\nAlso:\n```python\ndef solve(n:\n    return\n```",
    "later_cut": f"```python\n{FULL}```\nAlso:\n```python\ndef solve(n):\n    x = [1,",
    "unclosed_draft": f"```python\ndef solve(n):\n    return (\n\nLet me start again.\n```python\n{FULL}```",
    "unclosed_docstring_draft": f'```python\ndef solve(n):\n    """Add\n```\nAgain:\n```python\n{DOCSTRING}```\n',
    "helper_other_block": blocks("def add(a, b):\n    return a + b", "def solve(n):\n    return add(n, 1)"),
    "helper_later": blocks("def solve(n):\n    return add(n, 1)", "def add(a, b):\n    return a + b"),
    "imports_other": "```python\nfrom operator import add as plus\n```\n```python\ndef solve(n):\n    return plus(n, 1)\n```",
    "star_import": "```python\nfrom operator import *\n```\n```python\ndef solve(n):\n    return add(n, 1)\n```",
    "constant": "```python\nONE = 1\nBOTH = (ONE, 2)\n```\n```python\ndef solve(n):\n    return n + BOTH[0]\n```",
    "class": blocks("from dataclasses import dataclass\n\n@dataclass\nclass Box:\n    n: int", "def solve(n):\n    return Box(n).n + 1"),
    "helper_in_prose": "Helper:\n\ndef add(a, b):\n    return a + b\n\nThen:\n```python\ndef solve(n):\n    return add(n, 1)\n```",
    "locals_not_pulled": "```python\nn = int(input())\n```\n```python\ndef solve(n):\n    return n + 1\n```",
    "example_fails": "```python\ndef solve(n):\n    return n + 1\n\nprint(solve(int(input())))\n```",
    "example_exits": "```python\ndef solve(n):\n    return n + 1\n\nif __name__ == '__main__':\n    raise SystemExit(1)\n```",
    "future": "```python\nfrom __future__ import annotations\n\ndef solve(n: Undefined):\n    return n + 1\n```",
    "repl": "```python\n>>> def solve(n):\n...     return n + 1\n...\n>>> solve(1)\n2\n```",
    "think": f"<think>\nMaybe\n```python\n{WRONG}```\n</think>\n```python\n{FULL}```",
    "think_later_draft": f"```python\n{FULL}```\n<think>hm\n```python\n{WRONG}```\n</think>",
    "think_no_open": f"maybe\n```python\n{WRONG}```\n</think>\n\n```python\n{FULL}```",
    "think_no_open_unclosed_fence": f"maybe\n```python\n{WRONG}</think>\n\n```python\n{FULL}```",
    "thought": f"<thought>{WRONG}</thought>{FULL}",
    "THINK": f"[THINK]{WRONG}[/THINK]```python\n{FULL}```",
    "harmony": f"<|channel|>analysis<|message|>{WRONG}<|end|><|start|>assistant<|channel|>final<|message|>```python\n{FULL}```<|return|>",
    "answer_tags": f"<think>x</think>\n<answer>\n```python\n{FULL}```\n</answer>",
    "answer_tags_raw": f"<answer>\n{FULL}</answer>",
    "think_in_code": "```python\ndef solve(n):\n    tag = '</think>' + '<think>'\n    return n + len(tag) // 15\n```",
    "py_tags": f"[PYTHON]\n{FULL}[/PYTHON]",
    "eot": f"{FULL}<|im_end|>",
    "eot_glued": "```python\ndef solve(n):\n    return n + 1\n```<|endoftext|>",
    "eot_glued_raw": "def solve(n):\n    return n + 1<|endoftext|>",
    "body_2": "  if n:\n    return n + 1\n  return 1\n",
    "body_3": "   m = n\n    return m + 1\n",
    "body_8": "        m = n\n        return m + 1\n",
    "body_tab": "\tif n:\n\t\treturn n + 1\n\treturn 1\n",
    "body_blank_first": "\n\n    return n + 1\n",
    "body_helper_after": "    return later(n)\n\n\ndef later(x):\n    return x + 1\n\nprint(",
    "body_prose_first": "The body is:\n\n    m = n\n    return m + 1\n",
    "body_comment_col_0": "    m = n\n# a comment\n    return m + 1\n",
    "body_inner_same_name": "    def solve(x):\n        return x + 1\n    return solve(n)\n",
    "body_then_main": "    return n + 1\n\nif __name__ == '__main__':\n    main()\n",
    "body_fenced_closing_only": "    return n + 1\n```\nThis adds one.",
    "body_after_example_block": "```python\nsolve(1)\n```\nThe body:\n```python\nreturn n + 1\n```",
    "body_before_example_block": "```python\nreturn n + 1\n```\nThen:\n```python\nprint(solve(1))\n```",
    "raw_code_prefilled": f"{FULL}```\nThis adds one.",
    "raw_indented": textwrap.indent(FULL, "    "),
    "raw_indented_below_prose": "The code:\n\n" + textwrap.indent(FULL, "    ") + "\nDone.",
    "raw_then_example_fence": f"{FULL}\nExample:\n```python\nprint(solve(1))\n```",
    "other_language_label": f"```text\n{FULL}```",
    "python_version": f"```python3.11\n{FULL}```",
    "braces": f"```{{python}}\n{FULL}```",
    "file": f"```solve.py\n{FULL}```",
    "attr": f'```python title="x"\n{FULL}```',
    "js_first": "```javascript\nfunction solve(n) { return n - 1 }\n```\n```python\n" + FULL + "```",
    "class_dec": "```python\nimport functools\n\n@functools.lru_cache(maxsize=None)\ndef solve(n):\n    return n + 1\n```",
    "table_at_col_0": "T = [\n1,\n2,\n]\n\ndef solve(n):\n    return n + T[0]\n\nThat is (all\n",
    "semi": "```python\nimport math; one = 1\n```\n```python\ndef solve(n): return n + one\n```",
    "output_block": f"```python\n{FULL}```\nOutput:\n```\n2\n```",
    "usage_import": f"```python\n{FULL}```\nUse:\n```python\nfrom solution import solve\nprint(solve(1))\n```",
    "wrapped": f"```python\n{FULL}```\nFaster:\n```python\nimport functools\nsolve = functools.lru_cache(solve)\n```",
    "stdlib_name": "```python\nfrom operator import index\n```\n```python\nfrom operator import index\nsolve = lambda n: index(n) + 1\n```",
    "own_module": blocks("def add(a, b):\n    return a + b", "from helpers import add\n\ndef solve(n):\n    return add(n, 1)"),
    "unused_third_party_from": "```python\nfrom numpy import array\nimport pandas as pd, math\ndef solve(n):\n    return n + 1\n```",
    "one_import_of_two_is_used": "```python\nimport numpy as np, math\ndef solve(n):\n    return n + math.floor(1.5)\n```",
    "unused_numpy": "```python\nimport numpy as np\n\ndef solve(n):\n    return n + 1\n```",
    "nbsp": "```python\ndef solve(n):\n\u00a0\u00a0\u00a0\u00a0return n + 1\n```",
    "zero_width": "\u200bdef solve(n):\n    return n + 1\n",
    "single_quotes_close": f"```python\n{FULL}'''\nDone",
    "unclosed_string_prose": f'{FULL}\nNote: don\'t use """ here\n',
    "class_after": f"```python\n{FULL}\n\nclass Test:\n    def test(self):\n        assert solve(1) == 2\n```",
    "asserts_wrong": f"```python\n{FULL}\nassert solve(1) == 3\n```",
    "exits": f"```python\n{FULL}\nimport sys\nsys.exit(1)\n```",
    "closing_with_text": f"```python\n{FULL}``` end\nprose",
    "spaced_info": f"``` python\n{FULL}```",
    "tab info": f"```\tpython\n{FULL}```",
    "colon_info": f"```python:solve.py\n{FULL}```",
    "lots_close": f"```python\n{FULL}`````",
    "html": f"<details>\n\n```python\n{FULL}```\n\n</details>",
    "heading": f"# Solution\n\n{FULL}\n## Notes\n- adds one\n* yes\n1. ok\n> quote\n",
    "bold_prose": f"**Solution**\n\n{FULL}\n**Done**",
    "table_prose": f"| a | b |\n|---|---|\n| 1 | 2 |\n\n{FULL}",
    "mid_answer_cut_body": "    result = n + 1\n    return result\n    x = [",
    "async_helper": f"```python\nasync def other(): ...\n{FULL}```",
    "global_state": "```python\nCALLS = []\n\ndef solve(n):\n    CALLS.append(n)\n    return n + 1\n```",
    "nested_fn": "```python\ndef solve(n):\n    def inner(x):\n        return x + 1\n    return inner(n)\n```",
    "type_alias_pulled": blocks(
        "from typing import Union\nNumber = Union[int, float]", "def solve(n: Number) -> Number:\n    return n + 1"
    ),
    "helper_chain": blocks("def a(n): return b(n)", "def b(n): return c(n)", "def c(n): return n + 1", "def solve(n): return a(n)"),
    "corrected_helper": blocks("def add(a): return a - 1\ndef solve(n): return add(n)", "def add(a): return a + 1"),
    "thinking_process": f"<thinking_process>{WRONG}</thinking_process>\n{FULL}",
    "reasoning_steps": f"Here are my reasoning steps:\n{WRONG}\n[BEGIN FINAL RESPONSE]\n```python\n{FULL}```\n[END FINAL RESPONSE]",
    "granite": f"Here is my thought process:\n{WRONG}\nHere is my response:\n{FULL}",
    "cohere": f"<|START_THINKING|>{WRONG}<|END_THINKING|><|START_RESPONSE|>```python\n{FULL}```<|END_RESPONSE|>",
    "kimi": f"◁think▷{WRONG}◁/think▷{FULL}",
    "gptoss_text": f"analysisWe need\n{WRONG}assistantfinal{FULL}",
    "inline_close": f"<think>draft {WRONG}</think> {FULL}",
    "copy_code": f"python\nCopy code\n{FULL}",
    "jupyter": f"In [1]:\n{FULL}\nOut[1]: 2",
    "fence_content_less_indented": "1. a\n   ```python\n" + FULL + "   ```\n",
    "nested_quote": "> > ```python\n" + "".join("> > " + line + "\n" for line in FULL.splitlines()) + "> > ```\n",
    "crlf_glued": f"```python\r\n{FULL.rstrip()}```\r\nok".replace("\n", "\r\n").replace("\r\r", "\r"),
    "outer_4_with_3_unlabelled": f"````\n```\n{FULL}```\n````",
    "inner_docstring_quadruple": "````python\ndef solve(n):\n    '''doc\n    ```\n    x\n    ```\n    '''\n    return n + 1\n````",
    "docstring_one_fence": "```python\ndef solve(n):\n    '''doc\n    ```\n    '''\n    return n + 1\n```",
    "raw_docstring_fence_col0": "def solve(n):\n    '''doc\n```python\nsolve(1)\n```\n    '''\n    return n + 1\n",
    "raw_backtick_string": "def solve(n):\n    t = '```'\n    return n + 1\n",
    "one_line_tilde": "~~~python def solve(n): return n + 1~~~",
    "one_line_body": "```return n + 1```",
    "one_line_body_py": "```python return n + 1```",
    "prose_from_with_code": f"from typing import List is needed.\nimport math for sqrt.\n\nclass Foo is not.\n{FULL}",
    "prose_starting_": f"@user asked for it.\n\n{FULL}",
    "prose_if": f"if you want to add one,\nfor example,\nwhile reading:\n\n{FULL}",
    "prose_try": f"try this:\n{FULL}",
    "prose_backslash": f"use \\\n{FULL}",
    "prose_apostrophe_bracket": f"It's (really\n{FULL}",
    "explanation_def_in_backticks": f"```python\n{FULL}```\nThe line `def solve(n): return n - 1` would be wrong.",
    "helper_loop_built": "```python\nT = {}\nfor i in range(10):\n    T[i] = i + 1\n```\n```python\ndef solve(n):\n    return T[n]\n```",
    "helper_augmented": "```python\nT = [2]\nT += [3, 4, 5, 6, 7]\n```\n```python\ndef solve(n):\n    return T[n - 1]\n```",
    "helper_global_stmt": "```python\ncounter = 0\n```\n```python\ndef solve(n):\n    global counter\n    counter = n + 1\n    return counter\n```",  # noqa: E501
    "helper_in_prose_list": "1. helper\n\ndef one():\n    return 1\n\n2. main\n\n" + "def solve(n):\n    return n + one()\n",
    "two_thinks": f"<think>{WRONG}</think>\nmid\n<think>{WRONG}</think>\n```python\n{FULL}```",
    "mixed_think_close": f"<think>{WRONG}</thinking>\n{FULL}",
    "begin_of_thought": f"<|begin_of_thought|>{WRONG}<|end_of_thought|>\n<|begin_of_solution|>\n{FULL}<|end_of_solution|>",
    "body_lost_nested": "if n:\n        return n + 1\n    return 1\n",
    "prompt_repeated_then_body": PROMPT + "    return n + 1\n",
    "tuple_assign": "solve, x = (lambda n: n + 1), 2",
    "overload": "```python\nfrom typing import overload\n@overload\ndef solve(n: int) -> int: ...\n@overload\ndef solve(n: str) -> str: ...\ndef solve(n):\n    return n + 1\n```",  # noqa: E501
}
"""Answers that are right, in shapes that models give."""

WRONG_ANSWERS = {
    "no_code": "I do not know.",
    "empty": "",
    "empty_block": "```python\n```",
    "wrong": f"```python\n{WRONG}```",
    "wrong_correction": f"```python\n{FULL}```\nBetter:\n```python\n{WRONG}```",
    "unfinished_thought": f"<think>\n```python\n{FULL}```",
    "unfinished_thought_of_another_model": f"[THINK]{FULL}",
    "only_a_thought": f"<think>{FULL}</think>",
    "stub": "```python\ndef solve(n):\n    pass\n```",
    "comment": "# the answer is trivial",
    "cut_off": "```python\ndef solve(n):\n    return (n +",
    "other_function": "```python\ndef solved(n):\n    return n + 1\n```",
    "fails_before_the_function": f"```python\nraise ValueError\n{FULL}```",
    "prints": "```python\ndef solve(n):\n    print(n + 1)\n```",
    "surrogate": "def solve(n): return '\ud800'",
}

needs_sandbox = pytest.mark.skipif(not sandbox_status().available, reason=f"no sandbox here: {sandbox_status().reason}")
BATCH = 24


def scored(answers: dict[str, str]) -> dict[str, Score]:
    """Scores by name, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(answers, pool.map(lambda text: score_code(REFERENCE, text), answers.values()), strict=True))


@needs_sandbox
@pytest.mark.parametrize("first", range(0, len(ANSWERS), BATCH))
def test_right_answers_pass_in_every_shape(first: int) -> None:
    """The whole way of each answer: thinking taken out, the program found inside the sandbox, the tests run there."""
    found = scored(dict(list(ANSWERS.items())[first : first + BATCH]))
    assert {name: score.reason for name, score in found.items() if score.status != "passed"} == {}


@needs_sandbox
def test_wrong_answers_fail() -> None:
    """Reading with good will must not turn a wrong answer into a right one, nor any answer into an unscored one."""
    assert {name for name, score in scored(WRONG_ANSWERS).items() if score.status != "failed"} == set()


@pytest.mark.parametrize("name", ANSWERS)
def test_the_program_in_an_answer_does_what_it_means(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same in this process, without a sandbox: the programs here are ours. The sandbox has no packages."""
    for package in ("numpy", "pandas"):
        monkeypatch.setitem(sys.modules, package, None)
    namespace: dict[str, object] = {}
    with contextlib.suppress(EOFError, OSError, AssertionError, SystemExit):  # examples below the function
        exec(compile(assemble(PROMPT, "solve", final_part(ANSWERS[name])) or "", "answer", "exec"), namespace)
    solve = namespace["solve"]
    assert callable(solve)
    assert [solve(1), solve(5)] == [2, 6]


def function_in(source: str | None, name: str) -> str:
    """The syntax tree of a function, as text."""
    body = ast.parse(source or "").body
    return next(ast.dump(node) for node in reversed(body) if isinstance(node, ast.FunctionDef) and node.name == name)


def test_every_problem_survives_each_format() -> None:
    """The canonical solutions, as a chat answer, as a raw function, and as a completion, keep their meaning."""
    for problem in problems():
        prompt, entry_point, solution = problem["prompt"], problem["entry_point"], problem["canonical_solution"]
        wanted = function_in(prompt + solution, entry_point)
        whole = prompt + solution
        answers = (
            f"Here:\n```python\n{whole}```",
            whole,
            f"Sure.\n\n{whole}",
            f"```python\n{whole}",
            f"~~~\n{whole.rstrip()}~~~",
            solution,
        )
        for answer in answers:
            assert function_in(assemble(prompt, entry_point, answer), entry_point) == wanted


@given(st.text(alphabet=st.sampled_from("`~\npython def solve(n):returnx=1 \t'\"\\#[({<think>")) | st.text())
def test_no_text_breaks_the_reader(text: str) -> None:
    """Model output is arbitrary; reading it must never raise."""
    assert isinstance(assemble(PROMPT, "solve", final_part(text)) or "", str)
    assert isinstance(final_number(text) or Fraction(0), Fraction)


LONG = [
    "@x\n", "\\\n", "a", "`", "```\n", "```\n~~~\n", "```\nx```\n", "```\n\"\"\"\n", "(", "(\n", "{0:", "{x}", "\"", "\\\"", "'\n",
    "    \n", "9", "-", ",111", "def solve(n):\n", "def solve(n):\n    x = [1,\n", "```python\ndef solve(n): x(\n```\n", "    x = 1\n",
    "else:\n", "x=1;", "a,", "not ", "if x: ", " <think> ", "</think>", "<answer>\n", "> ```python\n", "`solve`", "\\boxed{",
    "\\frac{1}{", "Answer: 5 eggs\n", "answer is ", "#### ", "#### x\n", "=1", "1/", "1 1/", "9^", "1e", "1 000 ", "\n Q", "⁹",
    "the cat ",
]  # fmt: skip
"""What hostile texts repeat."""
READERS: dict[str, Callable[[str], object]] = {
    "program": lambda text: assemble(PROMPT, "solve", text),
    "fenced": lambda text: assemble(PROMPT, "solve", f'```python\nx = f"{text}\n```'),
    "thinking": final_part,
    "number": final_number,
    "boxed": lambda text: final_number(f"\\boxed{{{text}"),
    "agreement": lambda text: agreement(text.split(), text[::-1].split()),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_takes_time_in_proportion(reader: str) -> None:
    """Four times the text takes some four times as long; a square would be 16 times, and some of these once took minutes."""

    def seconds(text: str) -> float:
        started = time.process_time()
        READERS[reader](text)
        return time.process_time() - started

    def in_proportion(part: str) -> bool:
        short, long = (seconds((part * size)[:size]) for size in (1_500, 6_000))
        return long < 0.2 + 8 * short

    for part in LONG:  # a busy neighbour slows one measurement, not three
        assert any(in_proportion(part) for _ in range(3)), part


@needs_sandbox
@pytest.mark.parametrize("text", ["@x\n" * 10_000, "\\\n" * 15_000, "```" + "a" * 50_000, "(" * 50_000])
def test_hostile_text_ends_as_a_wrong_answer(text: str) -> None:
    """The program is looked for inside the sandbox, where a clock runs."""
    assert score_code(REFERENCE, text).status == "failed"
