"""Chat templates: the text that transformers gives, on a fixed date, within bounds of time, memory and length."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import TEMPLATE, tiny_pair, write_pair

from harness.adapt.training.synth import user_turn_prefix
from harness.core.errors import HarnessError
from harness.models import templates
from harness.models.pair import load_pair

LLAMA = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}{%- endif %}Today: {{ date_string }}\n"
    "{%- for message in messages %}\n{{- '<' + message.role + '>' + message['content'] | trim }}\n{%- endfor %}"
)
MANY = (
    "{%- set ns = namespace(first=true, seen=dict(a=1)) %}{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}\n"
    "  {%- if ns.first %}{{ eos_token }}{% set ns.first = false %}{% endif %}"
    "{% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}\n"
    "{{ m.content.split('\n')[0] | upper }} {{ '%05d' % loop.index }} {{ tools is none }} {{ enable_thinking }}"
    "{{ ns.seen.items() | list }}\n"
    "{%- endfor %}{% if add_generation_prompt %}>>{% endif %}"
)
CHAT = [
    {"role": "system", "content": 'Be <brief> & "kind".'},
    {"role": "user", "content": " ünï\nx "},
    {"role": "assistant", "content": ""},
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One loaded tiny pair."""
    return tiny_pair(tmp_path_factory.mktemp("pair"), draft=False)


@pytest.mark.parametrize("template", [TEMPLATE, MANY, LLAMA.replace("strftime_now is", "nothing is")])
@pytest.mark.parametrize("end", [True, False])
def test_the_text_is_that_of_transformers(pair: Any, monkeypatch: pytest.MonkeyPatch, template: str, end: bool) -> None:
    """The process has an environment of its own; what it offers templates must be what they were written for."""
    monkeypatch.setattr(pair.tokenizer._tokenizer, "chat_template", template)
    theirs = pair.tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=end)
    assert pair.render(CHAT, add_generation_prompt=end) == theirs
    assert pair.encode(CHAT) == pair.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)


def test_a_template_that_prints_the_date_gives_the_same_prompt_every_day(tmp_path: Path) -> None:
    """The date is the pair's, not the day's; another one is another prompt."""
    path = write_pair(tmp_path, draft=False)
    settings = tmp_path / "target/tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "chat_template": LLAMA}))
    pair = load_pair(str(path))
    assert pair.render(CHAT[:1]) == 'Today: 01 Jan 2025<system>Be <brief> & "kind".'
    assert pair.decode(user_turn_prefix(pair, None)).startswith("Today: 01 Jan 2025<user>")
    path.write_text(path.read_text() + "template_date: 2026-02-03\n")
    assert load_pair(str(path)).render(CHAT[:1]).startswith("Today: 03 Feb 2026")


R = "range(99999)"
BOMBS = {
    "loops": f"{{% for a in {R} %}}{{% for b in {R} %}}{{% for c in {R} %}}{{% endfor %}}{{% endfor %}}{{% endfor %}}",
    "output": f"{{% for a in {R} %}}{{% for b in {R} %}}xxxxxxxxxxxxxxxx{{% endfor %}}{{% endfor %}}",
    "doubling": "{% set ns = namespace(s='xx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "product": "{{ 'x' * 9999999999 }}",
    "power": "{{ 9 ** 999999999 }}",
    "width": "{{ '%999999999999d' % 1 }}",
    "padding": "{{ 'x'.center(99999999999) }}",
    "replace": "{% set ns = namespace(s='xx') %}{% for i in range(9) %}{% set ns.s = ns.s.replace('x', ns.s) %}{% endfor %}",
    "join": f"{{{{ ({R} | list) | join('x' * 99999) }}}}",
    "date": "{{ strftime_now(5) }}",
    "format": "{{ '{:>9999999999}'.format(1) }}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "long": "{{ 'x' * 5000000 }}",
    "escape": "{{ ''.__class__.__mro__ }}",
    "namespace": "{% set ns = namespace(__class__=1) %}",
    "syntax": "{% for %}",
    "refusal": "{{ raise_exception('no system role\u001b[31m') }}",
    "type": "{{ messages + 1 }}",
    "nesting": "{{ " + "(" * 500 + "1" + ")" * 500 + " }}",
    "include": "{% include '/etc/passwd' %}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_template_without_end_is_stopped(pair: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Time, memory and length are bounded whatever the program is; the next prompt is served as before."""
    monkeypatch.setattr(templates, "CLOCK_S", 2.0)
    before, text = time.monotonic(), pair.render(CHAT)
    with monkeypatch.context() as bad:
        bad.setattr(pair.tokenizer._tokenizer, "chat_template", BOMBS[kind])
        with pytest.raises(HarnessError, match="chat template of 'tiny'") as caught:
            pair.encode("x")
    assert "\n" not in caught.value.problem.strip()
    assert "\x1b" not in str(caught.value)
    assert time.monotonic() - before < 60
    assert pair.render(CHAT) == text


@pytest.mark.parametrize("content", [5, {}, None, object(), "\ud800", [[[]]]])
def test_odd_messages_are_text_or_one_sentence(pair: Any, content: Any) -> None:
    """Content of any type never ends in a traceback."""
    with contextlib.suppress(HarnessError):
        assert pair.encode([{"role": "user", "content": content}])
