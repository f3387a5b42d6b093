"""Results files of runs and studies as one HTML page that anyone can open."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flatminima.files import write_text
from flatminima.report.comparing import verdict
from flatminima.report.curves import curves
from flatminima.report.explanations import explanations
from flatminima.report.flatness import flatness
from flatminima.report.guard import sound
from flatminima.report.landscapes import landscapes
from flatminima.report.mistakes import mistakes
from flatminima.report.outcomes import outcomes
from flatminima.report.page import render
from flatminima.report.provenance import provenance
from flatminima.report.reading import Study, read

__all__ = ["Study", "html", "read", "write_report"]


def write_report(targets: Sequence[Path], out: Path) -> Study:
    """Make a page of a study or of runs from their results files alone.

    Args:
        targets: One study, the results file of one, or runs; see `read`.
        out: The HTML file to write.

    Returns:
        What was read; its `notes` say what is missing or damaged.

    Raises:
        InputError: nothing can be read, or the page cannot be written.
    """
    study = read(targets)
    write_text(out, html(study))
    return study


def html(study: Study) -> str:
    """The page of a study, as text: about 5 MB, most of it plotly's script."""
    sections = [outcomes(study)]
    sections += sound(
        study,
        {
            "The learning curves": curves,
            "The measures of flatness": flatness,
            "The landscapes": landscapes,
            "The mistakes": mistakes,
            "The explanations": explanations,
        },
    )
    # Last, since it tells what could not be drawn.
    sections.append(provenance(study))
    sizes = {"method": len(study.methods), "seed": len(study.seeds), "run": study.count()}
    counts = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in sizes.items())
    return render(study.task, counts, verdict(study), sections, notes=len(study.notes))
