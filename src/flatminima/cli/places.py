"""Where each key of a YAML file stands, so that an error can name the line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flatminima.errors import InputError, require

Key = str | int


class Places:
    """The line of each key of a mapping and of each item of a list, by the keys that lead to it.

    Args:
        file: YAML that holds a mapping.

    Raises:
        InputError: a mapping that has a key twice, of which YAML would keep the last and say
            nothing; one that holds itself.
    """

    def __init__(self, file: Path) -> None:
        yaml = require("yaml", "cli")
        self.file = file
        self._lines: dict[tuple[Key, ...], int] = {}
        self._within: list[Any] = []
        root = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if root is not None:
            self._walk(root, ())

    def where(self, *keys: Key) -> str:
        """The file, and the line of the longest part of the way that is in it."""
        for length in range(len(keys), 0, -1):
            if keys[:length] in self._lines:
                return f"{self.file}, line {self._lines[keys[:length]]}"
        return str(self.file)

    def has(self, *keys: Key) -> bool:
        """Whether the way leads somewhere."""
        return keys in self._lines

    @contextmanager
    def naming(self, *keys: Key) -> Iterator[None]:
        """Put the place before what an `InputError` says."""
        try:
            yield
        except InputError as error:
            raise InputError(f"{self.where(*keys)}: {error}") from error

    def of_flags(self, words: str, *, small: bool) -> str:
        """The place of the first key that an error names by its flag; the file where none is."""
        for found in re.findall(r"--([a-z][a-z-]*)", words):
            key = found.replace("-", "_")
            ways: list[tuple[Key, ...]] = [(key,), ("vary", key)]
            for way in [("small", *way) for way in ways if small] + ways:
                if way in self._lines:
                    return self.where(*way)
        return str(self.file)

    def _walk(self, node: Any, way: tuple[Key, ...]) -> None:
        if node in self._within:
            line = node.start_mark.line + 1
            raise InputError(f"{self.file}, line {line}: this holds itself: leave the alias out")
        self._within.append(node)
        self._walk_into(node, way)
        self._within.pop()

    def _walk_into(self, node: Any, way: tuple[Key, ...]) -> None:
        if node.id == "sequence":
            for index, item in enumerate(node.value):
                self._lines[(*way, index)] = item.start_mark.line + 1
                self._walk(item, (*way, index))
        elif node.id == "mapping":
            for key, value in node.value:
                here, line = (*way, str(key.value)), key.start_mark.line + 1
                if here in self._lines:
                    raise InputError(
                        f"{self.file}, line {line}: {key.value!r} is given twice, first in line "
                        f"{self._lines[here]}: leave one out"
                    )
                self._lines[here] = line
                self._walk(value, here)
