"""What stands behind the ids of a run: prompts, and answers token by token."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from test_report import baseline, cell
from test_runner import FakePair, make_suite, run

from harness.core.errors import HarnessError
from harness.core.records import Sample
from harness.report import load_run
from harness.report.html import render_html
from harness.results.reading import read_records
from harness.results.texts import MOST, TEXTS, answer_key, read_texts
from harness.run.keep_texts import keep_texts
from harness.run.runner import reports_folder


def test_a_run_keeps_prompts_and_answers(finished: Path) -> None:
    """The pieces of every greedy answer join to its text; the page shows prompts and answers as text."""
    texts, pair = read_texts(finished), FakePair()
    records = [r for r in read_records(finished) if r.tokens]
    assert set(texts.prompts) == {r.sample_id for r in records}
    greedy = [r for r in records if r.temperature == 0]
    assert set(texts.answers) == {answer_key(r.tokens or ()) for r in greedy}
    for record in greedy:
        pieces = texts.answers[answer_key(record.tokens or ())]
        assert len(pieces) == record.emitted
        assert "".join(pieces) == pair.decode(record.tokens)
    page = (reports_folder(finished) / "report.html").read_text()
    assert '<b class="label">Prompt</b>' in page
    assert re.search(r'<mark class="(draft|lookup)">', page)
    assert page.count('<tr class="text">') == len(texts.prompts)


def test_markup_in_prompts_and_answers_is_text(tmp_path: Path) -> None:
    """What a prompt or a model wrote cannot become markup of the page."""
    folder = run(tmp_path, suite=make_suite())
    path = folder / TEXTS
    texts = json.loads(path.read_text())
    texts["prompts"] = dict.fromkeys(texts["prompts"], "<script>alert(1)</script>\x1b[31m")
    texts["answers"] = {key: ["</pre><img src=x>", *pieces[1:]] for key, pieces in texts["answers"].items()}
    path.write_text(json.dumps(texts))
    page = render_html(load_run(folder))
    assert "&lt;script&gt;alert(1)" in page
    assert "&lt;/pre&gt;&lt;img src=x&gt;" in page
    assert page.count("<script>") == 2
    assert "<img" not in page.partition("</main>")[0]
    assert "\x1b" not in page.partition("</main>")[0]


def test_runs_without_texts_and_damaged_ones(tmp_path: Path, finished: Path) -> None:
    """Older runs have none: ids stand alone. A damaged file is one sentence with what to do."""
    assert read_texts(tmp_path).prompts == {}
    for damage in ("{", "[]", '{"schema_version": 99}', '{"schema_version": 1, "prompts": {"a": 1}, "answers": {}}'):
        (tmp_path / TEXTS).write_text(damage)
        with pytest.raises(HarnessError, match=r"texts\.json") as caught:
            read_texts(tmp_path)
        assert caught.value.advice


def test_only_what_a_page_can_show_is_kept(tmp_path: Path) -> None:
    """The first prompts up to the limit, each distinct answer once, sampled ones only where there is no greedy one."""
    samples = [Sample(id=str(i), domain="d", prompt=f"p{i}") for i in range(MOST + 3)]
    records = [baseline("0", 3, 1.0, tokens=(1, 2, 3)), cell("0", [2], tokens=(1, 2, 3), emitted=3)]
    records += [cell("0", [2], tokens=(4, 5, 6), temperature=1.0), baseline(str(MOST), 3, 1.0, tokens=(7, 8, 9))]
    keep_texts(tmp_path, samples, records, FakePair().decode)
    texts = read_texts(tmp_path)
    assert list(texts.prompts) == [str(i) for i in range(MOST)]
    assert texts.answers == {answer_key((1, 2, 3)): ("1", " 2", " 3")}
    keep_texts(tmp_path, samples[:1], records[2:3], FakePair().decode)
    assert list(read_texts(tmp_path).answers) == [answer_key((4, 5, 6))]
