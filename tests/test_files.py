"""Files are read within bounds and written whole; every failure is one sentence that names the file."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from harness.core import files
from harness.core.errors import HarnessError
from harness.core.text import printable


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "not valid JSON"),
        (b"[1]", "a list where a JSON object belongs"),
        (b"null", "null where"),
        (b'"x"', "text where"),
        (b"3", "a number where"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": "\\ud800"}', "not valid JSON"),
        (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"a": "\xff"}', "not UTF-8 text (byte 7)"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_json_file_that_is_wrong_is_one_sentence(tmp_path: Path, content: bytes, problem: str) -> None:
    """Whatever is wrong with a JSON file, the error names the file and the reason on one line."""
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(HarnessError) as caught:
        files.read_json(path)
    assert problem in caught.value.problem
    assert str(path) in caught.value.problem
    assert "\n" not in caught.value.problem


@pytest.mark.parametrize("make", ["fifo", "device", "folder", "dangling", "missing", "nul"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path, make: str) -> None:
    """A pipe without a writer must not hang, an endless device must not fill memory."""
    path = tmp_path / ("a\0b" if make == "nul" else "a")
    if make == "fifo":
        os.mkfifo(path)
    elif make == "device":
        path.symlink_to("/dev/zero")
    elif make == "folder":
        path.mkdir()
    elif make == "dangling":
        path.symlink_to(tmp_path / "gone")
    with pytest.raises(HarnessError, match="cannot read"):
        files.read_bytes(path)


def test_a_bound_holds_for_packed_files_too(tmp_path: Path) -> None:
    """A small gzip file that unpacks to more than the bound is refused before it is unpacked in full; damage is a sentence."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"0" * 3_000_000))
    with pytest.raises(HarnessError, match="larger than 1 MiB"):
        files.read_bytes(path, most=2**20)
    path.write_bytes(gzip.compress(b"hello")[:-3])
    with pytest.raises(HarnessError, match="cannot read"):
        files.read_bytes(path)


def test_a_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    """The new content stands under the name, no temporary file stays, a long name does not matter."""
    path = tmp_path / ("n" * 200 + ".json")
    files.write_atomic(path, "old")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [path.name]
    with pytest.raises(OSError, match=r"."):
        files.write_atomic(tmp_path / "folder" / ("n" * 300), "x")
    assert os.listdir(tmp_path / "folder") == []


def test_control_characters_do_not_reach_a_terminal() -> None:
    """Escapes, carriage returns and direction overrides are shown, letters of all scripts and line breaks stay."""
    assert printable("a\x1b[31mb\rc\u202e\nä字\t") == "a\\x1b[31mb\\rc\\u202e\nä字\t"
    assert printable("x" * 5000) == "x" * 1999 + "…"
