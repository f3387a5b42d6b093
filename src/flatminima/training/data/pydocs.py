"""Text classification made from the Python it runs on: which package does a docstring come from?

Real prose by many hands, on every machine, without a download. The sources are parsed, never run.
"""

from __future__ import annotations

import ast
import os
import platform
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from flatminima.errors import InputError
from flatminima.progress import Progress
from flatminima.training.data.examples import Examples, Raw
from flatminima.training.data.spec import DataSpec

CLASSES = 10
MOST_PER_CLASS = 300
FEWEST_WORDS = 6
NEAR = 0.6
MASK = "MODULE"
_Scope = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
# Tests, what other packages installed, and what some Pythons lack (removed, or packaged apart).
LEFT_OUT = frozenset(
    {"dist-packages", "site-packages", "test", "tests", "ensurepip", "idlelib", "lib2to3"}
    | {"asynchat", "asyncore", "distutils", "imp", "nntplib", "smtpd"}
    | {"tkinter", "turtle", "turtledemo", "venv"}
)


def load(spec: DataSpec, seed: int, progress: Progress) -> Raw:
    """The ten packages of the standard library with most distinct docstrings, at most 300 of each.

    A docstring counts if it has six words or more and shares less than 60% of its word triples
    with every one before it, so no split holds a near copy of another's. In all of them the names
    of the ten packages and of their modules read "MODULE": the mask says nothing about the class.
    The texts depend on the version of Python, which the report gives.

    Raises:
        InputError: this Python comes without the sources of its standard library.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    by_package, modules = _docstrings(root, progress)
    largest = sorted(by_package, key=lambda package: (-len(by_package[package]), package))
    # Near copies are uncommon enough that the largest before their removal stay the largest.
    packages = sorted(largest[:CLASSES])
    if len(packages) < CLASSES or len(by_package[largest[CLASSES - 1]]) < 10:
        raise InputError(
            f"pydocs needs the sources of the standard library, and {root} has too few of them: "
            "install Python with its sources, or choose another data set (--data)"
        )
    mask = _mask(packages, modules)
    distinct = _distinct({package: by_package[package] for package in packages}, mask)
    texts: list[str] = []
    labels: list[int] = []
    for index, package in enumerate(packages):
        found = distinct[package]
        # Evenly spaced, so that no package is represented by the modules of its first letters.
        kept = np.linspace(0, len(found) - 1, min(len(found), MOST_PER_CLASS)).round().astype(int)
        texts += [found[position] for position in kept]
        labels += [index] * len(kept)
    return Raw(
        name="pydocs",
        kind="text",
        classes=tuple(packages),
        splits={"train": Examples(texts, np.array(labels, dtype=np.int64))},
        details={
            "origin": "docstrings of Python's standard library",
            "python": platform.python_version(),
        },
    )


def _docstrings(root: Path, progress: Progress) -> tuple[dict[str, list[str]], dict[str, set[str]]]:
    files = sorted(_files(root))
    by_package: dict[str, list[str]] = defaultdict(list)
    modules: dict[str, set[str]] = defaultdict(set)
    for done, path in enumerate(files, start=1):
        inside = path.relative_to(root).with_suffix("")
        package = inside.parts[0]
        modules[package].update(inside.parts[1:])
        by_package[package] += _of_file(path)
        progress("reading docstrings", done, len(files))
    return dict(by_package), modules


def _files(root: Path) -> Iterator[Path]:
    for folder, inside, names in os.walk(root):
        # Pruned while walking: what is installed beside the library may be far larger than it.
        inside[:] = [name for name in inside if _belongs(name)]
        for name in names:
            top = Path(folder) == root and name.startswith("_")
            if name.endswith(".py") and _belongs(name.removesuffix(".py")) and not top:
                yield Path(folder, name)


def _belongs(name: str) -> bool:
    private = name.startswith(("__py", "test_", "lib-", "config-")) or name.endswith("_test")
    return name not in LEFT_OUT and not private


def _of_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for scope in _scopes(tree):
        text = " ".join((ast.get_docstring(scope) or "").split())
        if len(_words(text)) >= FEWEST_WORDS:
            yield text


def _scopes(node: ast.AST) -> Iterator[_Scope]:
    if isinstance(node, _Scope):
        yield node
    for child in ast.iter_child_nodes(node):
        # Expressions are most of a tree and hold no docstrings.
        if isinstance(child, ast.stmt | ast.excepthandler):
            yield from _scopes(child)


def _mask(packages: list[str], modules: Mapping[str, set[str]]) -> re.Pattern[str]:
    """Package names anywhere, also inside identifiers; module names as words of their own."""
    inside = sorted(packages, key=len, reverse=True)
    words = sorted(
        {
            name.strip("_")
            for package in packages
            for name in modules[package]
            if not name.startswith("__")
        },
        key=lambda name: (-len(name), name),
    )
    pattern = "|".join(map(re.escape, inside))
    if words:
        pattern += rf"|(?<![A-Za-z])(?:{'|'.join(map(re.escape, words))})s?(?![A-Za-z])"
    return re.compile(pattern, re.IGNORECASE)


def _distinct(by_package: Mapping[str, list[str]], mask: re.Pattern[str]) -> dict[str, list[str]]:
    """The masked texts, without those whose word triples an earlier one shares (by `NEAR`)."""
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    sizes: list[int] = []
    kept: dict[str, list[str]] = {package: [] for package in by_package}
    for package, texts in by_package.items():
        for text in texts:
            masked = mask.sub(MASK, text)
            words = [word for word in _words(masked) if word != MASK.lower()]
            if len(words) < FEWEST_WORDS:
                continue
            triples = set(zip(words, words[1:], words[2:], strict=False))
            common: dict[int, int] = defaultdict(int)
            for triple in triples:
                for holder in holders[triple]:
                    common[holder] += 1
            if any(
                shared >= NEAR * (len(triples) + sizes[holder] - shared)
                for holder, shared in common.items()
            ):
                continue
            for triple in triples:
                holders[triple].append(len(sizes))
            sizes.append(len(triples))
            kept[package].append(masked)
    return kept


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())
