"""The list of methods, docs/methods.md, and each one's page, docs/methods/NAME.md, from the cards.

A page that somebody wrote gets its card under its title; of a method without one the page is its
card, how to ask for it, and what its class says of itself.
"""

from __future__ import annotations

import inspect
import re
import runpy
from collections.abc import Iterable
from pathlib import Path

import flatminima
from flatminima import explain, models, optim, tuning
from flatminima.cards import Card
from flatminima.files import read_json
from flatminima.objectives.registry import registered as objectives
from flatminima.perturb.cards import registered as methods
from flatminima.reparam.registry import registered as reparams

PAGES = Path(__file__).parents[1] / "docs/methods"
TITLES = {
    "perturb": "Method, where the gradient is taken",
    "objective": "Objective, what is minimized",
    "reparam": "Reparametrization, which weights are free",
    "optimizer": "Optimizer, how the weights move",
    "tuner": "Tuner, who sets the knobs",
    "model": "Model",
    "explain": "Explanation",
}
EQUATIONS = {"perturb": "Gradient", "objective": "Loss", "optimizer": "Step"}
FLAGS = {"perturb": "--perturb", "objective": "--objective", "reparam": "--reparam"}

ASKED = {
    "absolute-error": "--data diabetes --objective absolute-error",
    "backward-correction": "--label-noise 0.4 --objective 'backward-correction(noise=0.36)'",
    "coral": "--data two-bits --objective coral",
    "cutmix": "--model cnn --objective cutmix",
    "distance-constraint": "--reparam 'distance-constraint(radius=3)'",
    "distance-penalty": "--reparam 'distance-penalty(weight=0.01)'",
    "dual-t": "--label-noise 0.4 --objective 'dual-t(start=20; correction=forward)'",
    "erm": "--data two-bits --objective erm",
    "fishr": "--data two-bits --objective 'fishr(warmup=100)'",
    "gradient-norm": "--objective 'gradient-norm(weight=0.01)'",
    "hutchinson-alignment": "--data two-bits --objective 'hutchinson-alignment(exact=true)'",
    "irm": "--data two-bits --objective 'irm(warmup=100)'",
    "language-model": "--data arithmetic --objective language-model",
    "linear": "--data cosines --objective linear",
    "squared-error": "--data diabetes --objective squared-error",
    "trace-penalty": "--objective 'trace-penalty(weight=0.005)'",
    "vrex": "--data two-bits --objective vrex",
}
"""How to ask for those that need a number, or other data or models than the default."""

SYSTEMS = runpy.run_path(str(Path(__file__).with_name("system.py")))


def described() -> dict[str, tuple[Card, type | None]]:
    """Every card by its name, with the class that registered it where there is one."""
    found: dict[str, tuple[Card, type | None]] = {
        **methods(),
        **objectives(),
        **reparams(),
    }
    for room in (optim, tuning, models, explain):
        for card in room.CARDS:
            called = "".join(word.capitalize() for word in card.name.split("-"))
            found[card.name] = card, getattr(room, called, None)
    return found


def tables() -> dict[str, str]:
    """The table of each slot."""
    of_slot: dict[str, list[Card]] = {slot: [] for slot in TITLES}
    for card, _ in described().values():
        of_slot[card.slot].append(card)
    return {slot: _table(cards) for slot, cards in of_slot.items()}


def _table(cards: Iterable[Card]) -> str:
    lines = ["| name | what it is | cost | knob | source |", "| :-- | :-- | :-- | :-- | :-- |"]
    for card in cards:
        link = f"[`{card.name}`](methods/{card.name}.md)"
        lines.append(f"| {link} | {card.title} | {cost(card)} | {start(card)} | {card.source} |")
    return "\n".join([*lines, ""])


def cost(card: Card) -> str:
    """What it costs, in words."""
    if card.slot == "perturb":
        buffers = _counted(card.buffers, "weight-sized buffer")
        return f"{_counted(card.gradients, 'gradient')} a step; {buffers}"
    if card.slot == "objective":
        return f"{_counted(card.gradients, 'gradient')} a pass; memory: {card.buffers}"
    if card.slot == "reparam":
        more = "no" if card.gradients == "0" else f"{card.gradients} more"
        held = card.buffers
        sized = _counted(held, "weight-sized buffer") if held.isdigit() else f"memory: {held}"
        return f"{more} gradient; {sized}"
    return f"{card.gradients}; memory: {card.buffers}" if card.buffers else card.gradients


def _counted(count: str, thing: str) -> str:
    return f"{count} {thing}" if count == "1" else f"{count} {thing}s"


def start(card: Card) -> str:
    """Where to start with its knob, which the suggestion may name itself."""
    named = not card.strength or card.suggested.startswith(f"{card.strength} ")
    return card.suggested if named else f"{card.strength} {card.suggested}"


def card_lines(card: Card) -> str:
    """The card as a list."""
    rows = {
        TITLES[card.slot].partition(",")[0]: f"`{card.name}`",
        EQUATIONS.get(card.slot, "What it does"): f"`{card.equation}`",
        "Cost": cost(card),
        "Base optimizer": f"`{card.base}` only" if card.base else "",
        "Start with": start(card),
        "Also called": ", ".join(f"`{alias}`" for alias in card.aliases),
        "Options fixed": ", ".join(f"`{k}={v!r}`" for k, v in (card.preset or {}).items()),
        "Source": card.source,
    }
    return "\n".join(f"- {name}: {text}" for name, text in rows.items() if text)


def page(name: str) -> str:
    """The page of a method."""
    card, cls = described()[name]
    block = f"<!-- card: by `make readme` -->\n{card_lines(card)}\n<!-- end of card -->"
    file = PAGES / f"{name}.md"
    written = file.read_text() if file.is_file() else ""
    if written and "<!-- written from the code -->" not in written:
        if "<!-- card: " in written:
            return re.sub(
                r"<!-- card: .*?<!-- end of card -->", lambda _: block, written, flags=re.DOTALL
            )
        title, _, rest = written.partition("\n")
        return f"{title}\n\n{block}\n{rest}"
    assert cls is not None, f"{name} has no page, and no class to write one from"
    about = inspect.cleandoc(cls.__doc__ or "")
    parts = [
        f"# {card.title}\n\n{block}\n",
        _asked(card),
        f"In Python `{_place(cls)}`, which says of itself:\n",
        f"```text\n{about}\n```\n",
        _measured(name),
        "<!-- written from the code -->\n",
    ]
    return "\n".join(part for part in parts if part)


def _measured(name: str) -> str:
    """What the committed results say of it beside others; "" where its page is to say it."""
    for beside in ("combinations", "hessian-alignment"):
        found = read_json(SYSTEMS["RESULTS"] / f"system-{beside}.json")
        said = SYSTEMS["experiment"](beside).said_of(name, found)
        if said:
            return f"{said}\n"
    return ""


def _asked(card: Card) -> str:
    """How the command line is asked for it; "" where it is not."""
    if card.slot not in FLAGS:
        return ""
    asked = ASKED.get(card.name, f"{FLAGS[card.slot]} {card.name}")
    return f"```bash\nflatminima finetune {asked} --out runs/{card.name}\n```\n"


def _place(cls: type) -> str:
    """Where a user imports it from."""
    if cls.__name__ in flatminima.__all__:
        return f"flatminima.{cls.__name__}"
    return f"{'.'.join(cls.__module__.split('.')[:2])}.{cls.__name__}"


def stale() -> list[str]:
    """Pages that are not what the cards and classes say, or whose method there is none of."""
    wrong = [
        name
        for name in described()
        if not (file := PAGES / f"{name}.md").is_file() or file.read_text() != page(name)
    ]
    results = PAGES.parent / "results"
    return wrong + [
        file.stem
        for file in sorted(PAGES.glob("*.md"))
        if file.stem not in described() and not (results / f"system-{file.stem}.json").is_file()
    ]


def write() -> None:
    """Write all pages."""
    for name in described():
        text = page(name)
        (PAGES / f"{name}.md").write_text(text)
