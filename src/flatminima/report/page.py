"""The page: sections into one HTML file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from flatminima.errors import require
from flatminima.report.blocks import Figure, Section
from flatminima.report.comparing import Verdict

HERE = "flatminima.report"


def render(
    title: str, subtitle: str, verdict: Verdict, sections: Sequence[Section], notes: int
) -> str:
    """One self-contained page.

    All words are escaped by the template; in the figures, by `blocks.plain`, and their JSON cannot
    end the element it stands in.

    Raises:
        InputError: jinja2 or plotly is not installed.
    """
    jinja2 = require("jinja2", "report")
    plotly = require("plotly.offline", "report")
    figures: list[dict[str, Any]] = []

    def drawn(figure: Figure) -> int:
        figures.append({"data": figure.data, "layout": figure.layout})
        return len(figures) - 1

    files = resources.files(HERE).joinpath("page")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files.joinpath("page.html").read_text("utf-8"))
    body: str = template.render(
        title=title,
        subtitle=subtitle,
        verdict=verdict,
        sections=sections,
        notes=notes,
        drawn=drawn,
        style=files.joinpath("page.css").read_text("utf-8"),
    )
    # The figures are known only once the body is drawn.
    scripts = [
        f'<script type="application/json" id="figures">{_embedded(figures)}</script>',
        f"<script>{plotly.get_plotlyjs()}</script>",
        f"<script>{files.joinpath('page.js').read_text('utf-8')}</script>",
    ]
    return body.replace("</body>", "\n".join([*scripts, "</body>"]))


def _embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
