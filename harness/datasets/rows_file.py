"""Rows of a prompt file of any kind: JSONL, a JSON list, CSV, TSV or Parquet. Every bad row is named."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.core.files import TEXT_BYTES, open_regular, parse_json, read_text, reading
from harness.datasets.jsonl_file import read_jsonl, refuse

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""Kinds of prompt files; text files may end in ``.gz`` too."""
MOST_ROWS = 200_000
"""Rows of one dataset: to compare every prompt with every other takes minutes beyond."""
ADVICE = f"Give a readable file that ends in {', '.join(SUFFIXES)}; its path is relative to the suite file or the working directory."


def kind_of(path: str | Path) -> str | None:
    """The ending of a prompt file, ``.gz`` left out; None for any other file."""
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    return suffix if suffix in SUFFIXES else None


def read_rows(path: Path, check: Callable[[dict[str, Any]], str | None]) -> list[dict[str, Any]]:
    """All rows of a file.

    Args:
        path: the file; one of no known ending is read as JSONL.
        check: says what is wrong with a row.

    Raises:
        HarnessError: missing, unreadable or empty file, too many rows, or bad rows (the first few with their place and reason).
    """
    kind = kind_of(path)
    if kind in (None, ".jsonl"):
        rows = read_jsonl(path, check=check)
    else:
        rows = _READERS[str(kind)](path)
        unit = "row" if kind == ".parquet" else "entry" if kind == ".json" else "line"
        first = 2 if unit == "line" else 1
        reasons = ((number, check(row)) for number, row in enumerate(rows, start=first))
        refuse(path, [f"{path}, {unit} {number}: {reason}" for number, reason in reasons if reason], "Fix these rows.")
    if not rows:
        raise HarnessError(f"{path} holds no prompts", "Add some.")
    check_count(len(rows), str(path))
    return rows


def check_count(rows: int, where: str) -> None:
    """Refuse more than :data:`MOST_ROWS`."""
    if rows > MOST_ROWS:
        raise HarnessError(f"{where} has {rows} rows, more than {MOST_ROWS}", "Give a part of it.")


def _json(path: Path) -> list[dict[str, Any]]:
    text = read_text(path, advice=ADVICE)
    if not text.lstrip().startswith("["):
        return [parse_json(text, str(path), advice=ADVICE)]
    rows = parse_json(f'{{"rows": {text}}}', str(path), advice=ADVICE)["rows"]
    if odd := next((number for number, row in enumerate(rows, start=1) if not isinstance(row, dict)), None):
        raise HarnessError(f"{path}: entry {odd} is no JSON object", "Each entry must be one JSON object.")
    return list(rows)


def _separated(path: Path) -> list[dict[str, Any]]:
    """Rows of a CSV or TSV file with a header; an empty cell is absent."""
    text = read_text(path, advice=ADVICE)
    with reading(path, advice="Save it as CSV with a header line and quoted text."):
        return [{key: cell for key, cell in row.items() if cell} for row in _table(text, "\t" if kind_of(path) == ".tsv" else ",", path)]


def _table(text: str, separator: str, path: Path) -> Iterator[dict[str, Any]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    before, header = csv.field_size_limit(TEXT_BYTES), next(lines, [])
    try:
        if len(set(header)) != len(header):
            raise HarnessError(f"{path}: two columns have the same name", "Give every column its own name.")
        for cells in lines:
            if len(cells) > len(header):
                raise HarnessError(
                    f"{path}:{lines.line_num}: {len(cells)} cells under {len(header)} columns", "Quote text that holds commas."
                )
            if cells:
                yield dict(zip(header, cells, strict=False))
    finally:
        csv.field_size_limit(before)


def _parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    open_regular(path, advice=ADVICE).close()
    with reading(path, advice=ADVICE):
        file = parquet.ParquetFile(path)
        check_count(file.metadata.num_rows, str(path))
        unpacked = sum(file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups))
        if unpacked > TEXT_BYTES:
            raise HarnessError(f"{path} unpacks to more than {TEXT_BYTES / 2**20:.0f} MiB", "Give a smaller file, or split it.")
        rows = file.read().to_pylist()
    return [{key: cell for key, cell in row.items() if cell is not None} for row in rows]


_READERS: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
    ".json": _json, ".csv": _separated, ".tsv": _separated, ".parquet": _parquet,
}  # fmt: skip
