"""Parts of a page that files of any content may break, without the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

from flatminima.report.reading import Study

Part = TypeVar("Part")


def sound(study: Study, parts: Mapping[str, Callable[[Study], Part | None]]) -> list[Part]:
    """The parts that can be made; of the others the study's notes tell.

    Args:
        study: What they are made of.
        parts: What each is called, and what makes it or says None where there is nothing to show.
    """
    found = []
    for name, make in parts.items():
        try:
            with np.errstate(all="ignore"):
                part = make(study)
        # Files that hold anything raise anything; the page is made from the rest.
        except Exception as error:
            study.notes.append(f"{name} could not be drawn, of what a file holds: {error!r}.")
            continue
        if part is not None:
            found.append(part)
    return found
