"""One place for files: read only what is regular, bounded and well-formed, every failure one sentence; write old or new, never a part."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import json
import math
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from harness.core.errors import HarnessError
from harness.core.records import SCHEMA_VERSION
from harness.core.text import printable

TEXT_BYTES = 256 * 2**20
"""A text or data file larger than this is refused."""
JSON_BYTES = 64 * 2**20
"""A JSON file larger than this is refused."""
RESTORE = "Restore the file from a copy, or make it again."
UPGRADE = "Upgrade the harness: pip install -U specdraft-harness."
POINTER = b"version https://git-lfs.github.com/"
"""How the text file begins that git keeps in place of a large one."""


def open_regular(path: Path, *, advice: str = RESTORE) -> BinaryIO:
    """Open a regular file for reading, links followed; a pipe, a device or a folder is refused without waiting for it.

    Raises:
        HarnessError: missing, not readable, not a regular file, or git-lfs's pointer to one.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        raise HarnessError(f"cannot read {path}: {reason(error)}", advice) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise HarnessError(f"cannot read {path}: it is not a regular file", advice)
    file = os.fdopen(handle, "rb")
    if file.read(len(POINTER)) == POINTER:
        file.close()
        raise HarnessError(f"{path} is a git-lfs pointer, not the file it stands for", f"Run `git lfs pull` in {path.parent}.")
    file.seek(0)
    return file


def read_bytes(path: Path, *, most: int = TEXT_BYTES, advice: str = RESTORE) -> bytes:
    """The content of a regular file of at most ``most`` bytes; a file that ends in ``.gz`` is unpacked, within the same bound.

    Raises:
        HarnessError: it cannot be read, is larger, or is damaged gzip.
    """
    with open_regular(path, advice=advice) as file:
        source = gzip.GzipFile(fileobj=file) if path.suffix == ".gz" else file
        try:
            data = source.read(most + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise HarnessError(f"cannot read {path}: {reason(error)}", advice) from None
    if len(data) > most:
        raise HarnessError(f"{path} is larger than {most / 2**20:.0f} MiB", "Give a smaller file, or split it.")
    return data


def read_text(path: Path, *, most: int = TEXT_BYTES, advice: str = RESTORE) -> str:
    """The text of a UTF-8 file, a byte order mark removed.

    Raises:
        HarnessError: as :func:`read_bytes`, or not UTF-8.
    """
    try:
        return read_bytes(path, most=most, advice=advice).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise HarnessError(f"cannot read {path}: not UTF-8 text (byte {error.start})", advice) from None


def read_json(path: Path, *, most: int = JSON_BYTES, advice: str = RESTORE) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        HarnessError: as :func:`read_text`, or not one well-formed JSON object.
    """
    return parse_json(read_text(path, most=most, advice=advice), str(path), advice=advice)


def parse_json(text: str | bytes, where: str, *, advice: str = RESTORE) -> dict[str, Any]:
    """One JSON object; ``where`` (a file, or ``file:line``) begins the error.

    Raises:
        HarnessError: malformed, nested too deeply, no object, a number that is not finite, or text that is not Unicode.
    """
    try:
        data = json.loads(text, parse_constant=_not_finite, parse_float=_finite, parse_int=_bounded)
        json.dumps(data, ensure_ascii=False).encode()  # lone surrogates stop here instead of at the next write
    except (ValueError, RecursionError) as error:
        raise HarnessError(f"{where} is not valid JSON: {reason(error)}", advice) from None
    if not isinstance(data, dict):
        raise HarnessError(f"{where} holds {_kind(data)} where a JSON object belongs", advice)
    return data


def version_of(data: dict[str, Any], where: str, *, newest: int = SCHEMA_VERSION, advice: str = RESTORE) -> int:
    """The ``schema_version`` of what was read, of a layout whose newest version here is ``newest``.

    Raises:
        HarnessError: it has none, or a newer one than this program writes.
    """
    version = data.get("schema_version")
    if type(version) is not int:
        raise HarnessError(f"{where} has no schema_version", advice)
    if version > newest:
        raise HarnessError(f"{where} was written by a newer version (schema {version}, here {newest})", UPGRADE)
    return version


def this_version(data: dict[str, Any], where: str, *, newest: int = SCHEMA_VERSION, advice: str = RESTORE) -> dict[str, Any]:
    """``data`` without its ``schema_version``.

    Raises:
        HarnessError: as :func:`version_of`.
    """
    version_of(data, where, newest=newest, advice=advice)
    return {key: value for key, value in data.items() if key != "schema_version"}


def read_stored(schema: Any, path: Path, *, advice: str = RESTORE) -> Any:
    """What this program wrote to a JSON file with a ``schema_version``, as ``schema``.

    Raises:
        HarnessError: as :func:`read_json`, :func:`this_version` and :func:`typed`.
    """
    return typed(schema, this_version(read_json(path, advice=advice), str(path), advice=advice), str(path), advice=advice)


def typed(schema: Any, data: Any, where: str, *, advice: str = RESTORE) -> Any:
    """JSON data as ``schema``, a dataclass or any other type with annotations: every field is there and has its type.

    Raises:
        HarnessError: a field is missing, unknown or of another type; names it.
    """
    from pydantic import ValidationError

    if dataclasses.is_dataclass(schema) and isinstance(data, dict):
        unknown = sorted(data.keys() - {field.name for field in dataclasses.fields(schema)})
        if unknown:
            raise HarnessError(f"{where} does not fit its schema: unknown field {unknown[0]!r}", advice)
    try:
        return _adapter(schema).validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "the content"
        what = "is missing" if first["type"] == "missing" else first["msg"].replace("Input should be", "must be")
        raise HarnessError(f"{where} does not fit its schema: {name} {what}", advice) from None


@functools.cache
def _adapter(schema: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


@contextlib.contextmanager
def reading(where: Path | str, *, advice: str = RESTORE) -> Iterator[None]:
    """Turn whatever a library raises while it reads ``where`` into one sentence.

    Raises:
        HarnessError: the library failed; ours and a request to stop pass unchanged.
    """
    try:
        yield
    except (HarnessError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        raise HarnessError(f"cannot read {where}: {printable(reason(error))}", advice) from None


def write_atomic(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data``, as :func:`replacing` does.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old content stays.
    """
    with replacing(path) as part:
        part.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write that becomes ``path`` when the block ends well: a reader or a crash sees the old file or the new one, both synced.

    Raises:
        OSError: the disk is full or the folder cannot be written; the old content stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.", suffix=".part")
    os.close(handle)
    part = Path(name)
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        part.chmod(0o666 & ~_umask())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename inside ``folder`` outlast a power cut, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sha256(path: Path, *, advice: str = RESTORE) -> str:
    """SHA-256 of a regular file, 64 hex digits."""
    digest = hashlib.sha256()
    with open_regular(path, advice=advice) as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def reason(error: BaseException) -> str:
    """Why reading failed, in a few words, without the path that the sentence already names."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:1].lower() + error.strerror[1:]
    if isinstance(error, RecursionError):
        return "nested too deeply"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:200].strip() or type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _not_finite(name: str) -> NoReturn:
    raise ValueError(f"{name[:40]} is not a number here")


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _not_finite(digits)


def _bounded(digits: str) -> int:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**64:
        raise ValueError(f"the number {digits[:20]}... has more than 64 bits")
    return int(digits)


def _kind(value: object) -> str:
    names: dict[type, str] = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")
