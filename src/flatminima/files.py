"""Files that are either the old ones or the new ones, never half written."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flatminima.errors import InputError

_MENDS = {
    errno.EACCES: "make its folder writable or choose another one",
    errno.EPERM: "make its folder writable or choose another one",
    errno.EROFS: "the file system is read-only, choose another folder",
    errno.ENOSPC: "free space on that disk or choose another one",
    errno.EDQUOT: "free space in that quota or choose another disk",
    errno.ENOTDIR: "a part of the path is a file, choose another folder",
    errno.EEXIST: "a part of the path is a file, choose another folder",
    errno.EISDIR: "the path is a folder, choose another name",
}


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` to `path` atomically, creating the folders above it.

    The data go to a temporary file in the same folder, are flushed to the disk (fsync), and the
    file is then renamed over `path`: a reader sees the old file or the new one, and so does who
    comes after a crash.

    Args:
        path: The file to write.
        data: Its content.

    Raises:
        InputError: the file cannot be written (read-only, disk full, not a folder).
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner only, and the rename would keep that.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        mend = _MENDS.get(error.errno or 0, "choose another path")
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot write {path}: {reason}; {mend}") from error


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` atomically, as UTF-8. See `write_bytes`.

    Args:
        path: The file to write.
        text: Its content.

    Raises:
        InputError: the file cannot be written.
    """
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | Path, data: Any) -> None:
    """Write `data` to `path` atomically as standard JSON, indented. See `write_bytes`.

    JSON has no NaN and no infinity, and many readers refuse a file with them: such a number is
    written as `null`. Paths become strings, numpy and torch numbers and arrays become lists, and
    an object with a `to_dict()` becomes that.

    Args:
        path: The file to write.
        data: What to write.

    Raises:
        InputError: the file cannot be written.
        TypeError: something in `data` has no form in JSON.
    """
    write_text(path, json.dumps(_plain(data), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """What the JSON file at `path` holds.

    Args:
        path: The file to read.

    Raises:
        InputError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot read {path}: {reason}; check the path") from error
    except ValueError as error:
        raise InputError(f"cannot read {path}: it is not JSON ({error}); write it anew") from error


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    for convert in ("to_dict", "tolist"):
        if hasattr(value, convert):
            return _plain(getattr(value, convert)())
    raise TypeError(f"{type(value).__name__} has no form in JSON: {value!r}")
