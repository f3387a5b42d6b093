"""Write the tables in the docs from what they show: committed results and the methods' cards.

python benchmarks/readme.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from flatminima.perturb import Card, cards
from flatminima.study import markdown_table

ROOT = Path(__file__).parents[1]


def demo_table() -> str:
    """The table of `make demo`."""
    return markdown_table(json.loads((ROOT / "docs/results/demo.json").read_text()))


def method_cards() -> str:
    """A section for each method."""
    return "\n".join(_section(card) for card in cards())


def _section(card: Card) -> str:
    rows = {
        "Gradient": f"`{card.equation}`",
        "Cost": f"{card.gradients} gradients a step; {card.buffers} weight-sized buffers",
        "Base optimizer": f"`{card.base}` only" if card.base else "",
        "Start with": card.suggested,
        "Also called": ", ".join(f"`{alias}`" for alias in card.aliases),
        "Options fixed": ", ".join(f"`{k}={v!r}`" for k, v in (card.preset or {}).items()),
        "Source": card.source,
    }
    lines = [f"- {name}: {text}" for name, text in rows.items() if text]
    return "\n".join([f"## `{card.name}`: {card.title}", "", *lines, ""])


def fill(path: Path, name: str, content: str) -> None:
    """Put content between the two comments that name it."""
    pattern = rf"(<!-- {name}: .*? -->\n).*?(<!-- end of {name} -->)"
    text, found = re.subn(
        pattern, lambda m: f"{m[1]}\n{content}\n{m[2]}", path.read_text(), flags=re.DOTALL
    )
    if found != 1:
        raise SystemExit(f"{path} has no place for the {name}")
    path.write_text(text)


if __name__ == "__main__":
    fill(ROOT / "README.md", "demo table", demo_table())
    fill(ROOT / "docs/methods.md", "method cards", method_cards())
