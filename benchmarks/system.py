"""Runs a method's experiment, keeps what it found, and writes its page's tables.

    python benchmarks/system.py run elr      # docs/results/system-elr.json
    python benchmarks/system.py page         # docs/methods/*.md; also by `make readme`

An experiment is a module `systems/NAME.py` with `run() -> dict`, what is kept (JSON values), and
`table(found) -> str`, Markdown that stands in `docs/methods/NAME.md` between the comments
`<!-- results: ... -->` and `<!-- end of results -->`; and, where a picture helps,
`draw(found, folder)`, which writes `system-NAME*.svg` or `.png` into a folder.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

from flatminima.files import read_json, write_json, write_text
from flatminima.training.directory import environment

ROOT = Path(__file__).parents[1]
RESULTS, PAGES = ROOT / "docs/results", ROOT / "docs/methods"


def experiment(name: str) -> ModuleType:
    """The module of an experiment."""
    sys.path.insert(0, str(Path(__file__).parent))
    return importlib.import_module(f"systems.{name.replace('-', '_')}")


def kept() -> list[str]:
    """The experiments that have been run."""
    files = sorted(RESULTS.glob("system-*.json"))
    return [f.stem.removeprefix("system-") for f in files if not f.stem.endswith("-environment")]


def run(name: str) -> None:
    """Run one, keep its numbers, and draw it."""
    found = experiment(name).run()
    write_json(RESULTS / f"system-{name}.json", found)
    write_json(RESULTS / f"system-{name}-environment.json", environment())
    draw(name)


def draw(name: str) -> None:
    """Draw what was kept."""
    module = experiment(name)
    if hasattr(module, "draw"):
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams["svg.hashsalt"] = "flatminima"
        module.draw(read_json(RESULTS / f"system-{name}.json"), RESULTS)


def page(name: str) -> str:
    """The page of a method, with the table of what was found."""
    text = (PAGES / f"{name}.md").read_text()
    table = experiment(name).table(read_json(RESULTS / f"system-{name}.json")).strip()
    pattern = r"(<!-- results: .*? -->\n).*?(<!-- end of results -->)"
    text, places = re.subn(pattern, lambda m: f"{m[1]}\n{table}\n\n{m[2]}", text, flags=re.DOTALL)
    if places != 1:
        raise SystemExit(f"docs/methods/{name}.md has no place for its results")
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parts = parser.add_subparsers(dest="part", required=True)
    for part in ("run", "draw"):
        parts.add_parser(part).add_argument("name")
    parts.add_parser("page")
    arguments = parser.parse_args()
    if arguments.part == "run":
        run(arguments.name)
    elif arguments.part == "draw":
        draw(arguments.name)
    for name in kept():
        write_text(PAGES / f"{name}.md", page(name))
