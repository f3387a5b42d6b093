"""`flatminima methods`: what there is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flatminima.cli import flags, screen
from flatminima.errors import require, unknown

if TYPE_CHECKING:
    from flatminima.cards import Card


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands, "methods", "[NAME]", "list the methods, or show one", "flatminima methods nso"
    )
    parser.add_argument("name", nargs="?", help="a method to show in full")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print all cards as a table, or one in full."""
    from flatminima import explain, models, optim, tuning
    from flatminima.objectives import objective_cards
    from flatminima.perturb import cards
    from flatminima.reparam import reparam_cards

    slots: tuple[tuple[str, Sequence[Card], str], ...] = (
        ("methods (--perturb)", cards(), "gradient the base optimizer sees"),
        ("objectives (--objective)", objective_cards(), "loss of a sample"),
        ("reparametrizations (--reparam)", reparam_cards(), "what it does"),
        ("optimizers", optim.CARDS, "step"),
        ("tuners", tuning.CARDS, "what it solves"),
        ("models", models.CARDS, "what it computes"),
        ("explanations", explain.CARDS, "what it computes"),
    )
    if arguments.name is None:
        for title, found, equation in slots:
            if found:
                screen.show(_table(title, found, equation))
        return
    known = {n: card for _, found, _ in slots for card in found for n in (card.name, *card.aliases)}
    if arguments.name not in known:
        raise unknown("method", arguments.name, known)
    for field, value in asdict(known[arguments.name]).items():
        if value:
            text = ", ".join(value) if isinstance(value, tuple) else value
            print(f"{field:<10} {text}")


def _table(title: str, methods: Sequence[Card], equation: str) -> Any:
    tables = require("rich.table", "cli")
    text = require("rich.text", "cli").Text  # brackets in a str would be markup
    table = tables.Table(title=title)
    for header in ("name", "what it is", equation, "cost", "knob", "source"):
        table.add_column(header)
    for method in methods:
        found = (method.name, method.title, method.equation, method.gradients, method.strength)
        cells = (*found, method.source)
        table.add_row(*map(text, cells))
    return table
