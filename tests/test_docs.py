"""The documentation says what is true: commands parse, links lead somewhere, examples run, quoted messages are the program's."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import configuration
import pytest
import yaml
from pydantic import BaseModel
from shown import ROOT, advised, anchors, blocks, command_lines, commands, inline, links, mentioned, messages, pages, parse, prose
from tiny import tiny_pair

from harness.adapt.training_config import TrainingConfig
from harness.core.records import Generation
from harness.datasets.local import read_rows
from harness.datasets.spec import DATASETS, DatasetSpec
from harness.distill.distill_config import DistillConfig
from harness.models.naming import shipped_pairs
from harness.models.pair_config import PairConfig

TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in pages()}
LINES = sorted({(name, line) for name, text in TEXTS.items() for line in command_lines(text)})
NAMED = sorted({(name, line) for name, text in TEXTS.items() for line in inline(text)})
SECTIONS = {
    name: field.annotation
    for model in (TrainingConfig, DistillConfig)
    for name, field in model.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
}
EXAMPLES = [(name, re.findall(r"Example: `([^`]*)`", command.help or "")) for name, command in commands()]


@pytest.mark.parametrize(("page", "line"), LINES)
def test_command_lines_parse(page: str, line: str) -> None:
    """What a reader copies works as it stands."""
    parse(line)


@pytest.mark.parametrize(("page", "line"), NAMED)
def test_commands_in_sentences_exist(page: str, line: str) -> None:
    """A command that a sentence names exists, and with arguments it parses."""
    mentioned(line)


@pytest.mark.parametrize(("name", "examples"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_help_has_examples_that_parse(name: str, examples: list[str]) -> None:
    """Every help text ends with an example of its own command that works."""
    assert examples
    for line in examples:
        assert line.startswith(f"harness {name}")
        parse(line)


@pytest.mark.parametrize(
    "line", ["harness colect x", "harness run", "harness run x --limt 3", "harness models", "harness run x --limit none"]
)
def test_wrong_lines_are_noticed(line: str) -> None:
    """The check itself: a wrong command, a missing argument, a wrong option, a missing part, a wrong value."""
    with pytest.raises(Exception):  # noqa: B017, PT011  the parser's own errors have no public name
        parse(line)


@pytest.mark.parametrize("page", TEXTS)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file, and a heading of it where it says so."""
    for link in links(TEXTS[page]):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


def test_every_page_is_linked_from_the_readme() -> None:
    """A page that nothing leads to is not read."""
    linked = set(links(TEXTS["README.md"]))
    assert {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")} <= linked


def test_configuration_page_is_that_of_the_models() -> None:
    """Keys, defaults and meanings are written once, in the code; `python tests/configuration.py` writes the page."""
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page()


def test_quoted_messages_are_the_programs() -> None:
    """Who searches for an error finds it: every quoted message stands in the sources, `…` for what varies."""
    quoted = re.findall(r"^### `([^`]+)`$", TEXTS["docs/troubleshooting.md"], flags=re.M)
    known = messages()
    assert len(quoted) > 20
    assert [text for text in quoted if not any(stands_in(text, message) for message in known)] == []


def stands_in(quoted: str, message: str) -> bool:
    """Whether a message, or a part of it, reads like this; an outer `…` only says that it goes on."""
    return quoted.strip("… ") in message


def test_options_that_errors_advise_exist() -> None:
    """Advice that no command takes is worse than none."""
    known = {name for _, command in commands() for option in command.params for name in (*option.opts, *option.secondary_opts)}
    named = advised()
    assert len(named) > 10
    assert named - known == {"--hostfile"}, "an option of mlx.launch"


def test_a_message_that_no_one_raises_is_noticed() -> None:
    """The check itself."""
    assert not any(stands_in("no source delivered the modell", message) for message in messages())


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page's examples, in order, on a tiny pair in place of the real one."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    pair = tiny_pair(tmp_path)
    loaded: list[str] = []

    def load(name: str) -> Any:
        loaded.append(name)
        return pair

    monkeypatch.setattr("harness.api.load_pair", load)
    page: dict[str, Any] = {}
    for example in blocks(TEXTS["docs/python.md"], "python"):
        exec(compile(example, "docs/python.md", "exec"), page)
    readme: dict[str, Any] = {}
    for example in blocks(TEXTS["README.md"], "python"):
        exec(compile(example, "README.md", "exec"), readme)
    assert loaded == ["smollm2", "smollm2"]
    assert page["answer"].tokens == page["plain"].tokens == readme["answer"].tokens


def test_paths_in_sentences_exist() -> None:
    """A file or folder of the repository that a sentence names is there."""
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")} - {"results", "reports"}
    named = [(page, code) for page, text in TEXTS.items() for code in re.findall(r"`([\w.-]+/[\w./-]*)`", prose(text))]
    inside = [(page, code) for page, code in named if code.split("/")[0] in tops]
    assert len(inside) > 20
    assert [(page, code) for page, code in inside if not (ROOT / code).exists()] == []


def test_keys_in_sentences_exist() -> None:
    """A key such as `adapt.threshold` is one of a config file."""
    keys = {f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields}
    named = [code for text in TEXTS.values() for code in re.findall(r"`(?:--set )?(\w+\.\w+)(?:[=:][^`]*)?`", prose(text))]
    named = [code for code in named if code.split(".")[0] in SECTIONS]
    assert len(named) > 5
    assert set(named) <= keys


def test_yaml_examples_are_valid() -> None:
    """What is copied into a file passes its check."""
    pair, domains = (yaml.safe_load(blocks(TEXTS[f"docs/{page}.md"], "yaml")[0]) for page in ("models", "data"))
    assert PairConfig.model_validate(pair).draft is not None
    assert {DatasetSpec.model_validate(spec).dataset for spec in domains["domains"].values()} == {"humaneval", "gsm8k", "local"}


def test_prompt_lines_are_valid(tmp_path: Path) -> None:
    """The lines that show a prompt file are one."""
    path = tmp_path / "mine.jsonl"
    path.write_text(blocks(TEXTS["docs/data.md"], "json")[0], encoding="utf-8")
    first, second = read_rows(DatasetSpec(dataset="local", path=str(path)))
    assert (first["id"], second["id"], second["domain"]) == ("mine/0", "mine/times-1", "math")


def test_datasets_are_all_described() -> None:
    """The table of datasets is that of the code."""
    assert set(re.findall(r"^\| `(\w+)` \|", TEXTS["docs/data.md"].split("## Your own")[0], flags=re.M)) == set(DATASETS)


def test_shipped_pairs_are_all_described() -> None:
    """The README's table of pairs is that of configs/models."""
    table = TEXTS["README.md"].split("## Pairs")[1].split("## ")[0]
    assert set(re.findall(r"^\| `([\w.-]+)` \|", table, flags=re.M)) == {name for name, _ in shipped_pairs()}


def test_arguments_and_fields_of_python_calls_exist() -> None:
    """The tables of docs/python.md name arguments of the calls and fields of the answer."""
    from harness.decode.generation import generate, stream

    page = TEXTS["docs/python.md"]
    rows = re.findall(r"^\| (`[^|]*`) \|", page, flags=re.M)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)} - {"argument"}
    known = {*inspect.signature(stream).parameters, *inspect.signature(generate).parameters}
    assert named > {"drafter", "k", "rule", "stop"}
    assert named <= known
    listed = re.search(r"raw counts and times: (.*?)\. What was not", page, flags=re.S)
    assert listed
    fields = re.findall(r"`(\w+)`", listed[1])
    assert len(fields) > 10
    assert all(field == "emitted" or field in Generation.__dataclass_fields__ for field in fields)
