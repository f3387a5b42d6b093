"""What the library says when something the user gave cannot work.

Every such error is an `InputError`: one line that names the thing, where it is, and the mend. The
command line prints the line and exits with code 2; from Python it is a `ValueError`.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from types import ModuleType

MOST_LISTED = 20
"""Known names that an error lists beside a suggestion."""


class InputError(ValueError):
    """Something given by the user cannot work; the message names it and says the mend."""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """An error for a name that is not known, suggesting the nearest one that is.

    Several known names, as "elr,mixup" or "elr+mixup", are told apart from a misspelt one.

    Args:
        kind: What the name should name, in the singular: "method", "noise distribution".
        name: The name given.
        known: The names that exist.
    """
    names = sorted(known)
    parts = [part.strip() for part in re.split(r"[,+]", str(name))]
    if len(parts) > 1 and all(part in names for part in parts):
        return InputError(f"{str(name)!r} is {len(parts)} names, and one {kind} is taken: give one")
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    listed = f"known are {', '.join(names)}" if len(names) <= MOST_LISTED or not nearest else ""
    return InputError(f"unknown {kind} {name!r}: {hint}{listed}".rstrip())


def require(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it.

    Args:
        module: The module to import.
        extra: The extra of this package that installs it.

    Raises:
        InputError: the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise InputError(
            f"this needs the package {module!r}, which is not installed: "
            f"pip install 'flatminima[{extra}]'"
        ) from error
