"""What a method of any slot says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Card:
    """One method as the command line and the docs show it.

    Attributes:
        name: How a user asks for it.
        title: Its full name.
        equation: What it does: the gradient that the base optimizer steps along, or the loss.
        gradients: Gradients per step; of an objective, of each pass; of what has no steps, the cost
            in words.
        buffers: Weight-sized buffers beyond the base optimizer's, while passes run.
        strength: The name of its main hyperparameter; "" where it has none.
        suggested: Where to start with it.
        source: Paper, year, arXiv id.
        slot: The slot of a training run that it fills: perturb, objective, reparam, optimizer or
            tuner; or "model" or "explain", for what stands beside them.
        aliases: Other names.
        preset: Options that tell it from another method of the same class.
        base: The only base optimizer that it can wrap, as a recipe names it; "" takes any.
        tasks: Of an objective, the tasks that it is a loss of.
    """

    name: str
    title: str
    equation: str
    gradients: str
    buffers: str
    strength: str
    suggested: str
    source: str
    slot: str = "perturb"
    aliases: tuple[str, ...] = ()
    preset: Mapping[str, Any] | None = None
    base: str = ""
    tasks: tuple[str, ...] = ("classification",)
