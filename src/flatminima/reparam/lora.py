"""Low-rank adapters, by peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from flatminima.cards import Card
from flatminima.errors import InputError, require
from flatminima.reparam.registry import register
from flatminima.reparam.slot import Reparam


@register(
    Card(
        name="lora",
        title="Low-rank adaptation",
        equation="W0 + (alpha / rank) B A; A, B and the head are free",
        gradients="0",
        buffers="rank (m + n) numbers for m x n",
        strength="rank",
        suggested="8",
        source="Hu et al., 2021, arXiv 2106.09685; by peft",
        slot="reparam",
    )
)
class LoRA(Reparam):
    r"""$W_0 + \frac{\alpha}{r} B A$ for frozen $W_0$ of shape (m, n): A is (r, n), B is (m, r).

    B begins at 0, so the model begins as it was. All else is frozen but the head, the last linear
    layer, which is often new. `bake` adds BA to W0 and takes the adapters away.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685;
    the adapters are those of peft.

    Args:
        model: It is changed in place.
        rank: r, 1 or above.
        alpha: Default: the rank, so that BA counts once.
        dropout: On the adapters' inputs.
        targets: Names of the layers to adapt, or the ends of their names, as "query,value".
            Default: all linear layers but the head; all convolutions where there is none.
        head: Whether the last linear layer stays free.

    Raises:
        InputError: a value out of its range, layers that the model does not have, or peft is not
            installed.
    """

    changes_modules: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | int | Sequence[str] | None = None,
        head: bool = True,
    ) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise InputError(f"rank is {rank!r}: give a whole number of at least 1")
        if not _is_number(dropout) or not 0 <= dropout < 1:
            raise InputError(f"dropout is {dropout!r}: give a number in [0, 1)")
        if alpha is not None and not (_is_number(alpha) and 0 < alpha < float("inf")):
            raise InputError(f"alpha is {alpha!r}: give a positive number")
        peft = require("peft", "peft")
        last = _head(model)
        chosen = _inner(model, last) if targets in (None, "") else _named(model, targets)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=rank if alpha is None else alpha,
            lora_dropout=dropout,
            target_modules=chosen,
        )
        peft.inject_adapter_in_model(config, model)
        if head and last is not None and last not in chosen:
            for parameter in model.get_submodule(last).parameters():
                parameter.requires_grad_(True)
        super().__init__(model)

    def bake(self, model: nn.Module) -> None:
        """Add each BA to its W0, and leave ordinary layers."""
        adapter = require("peft.tuners.tuners_utils", "peft").BaseTunerLayer
        for name, module in list(model.named_modules()):
            if isinstance(module, adapter):
                layer: Any = module
                layer.merge()
                place, _, own = name.rpartition(".")
                setattr(model.get_submodule(place), own, layer.get_base_layer())
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def _head(model: nn.Module) -> str | None:
    """The last linear layer, unless its weights are those of another layer too."""
    linear = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)]
    if not linear:
        return None
    name, layer = linear[-1]
    owners = [m for m in model.modules() for p in m.parameters(recurse=False) if p is layer.weight]
    return name if len(owners) == 1 else None


def _inner(model: nn.Module, head: str | None) -> list[str]:
    named = [(name, module) for name, module in model.named_modules() if name != head]
    linear = [
        name
        for name, module in named
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    found = linear or [name for name, module in named if isinstance(module, nn.Conv2d)]
    if not found:
        raise InputError("the model has no layer but its head to adapt: name some by targets")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _named(model: nn.Module, targets: Any) -> list[str]:
    # The command line reads the name of a layer that is a number as one.
    words = targets if isinstance(targets, list | tuple) else str(targets).split(",")
    names = [name for name, _ in model.named_modules() if name]
    found = []
    for target in (str(word).strip() for word in words):
        matching = [name for name in names if name == target or name.endswith(f".{target}")]
        if not matching:
            known = sorted({name.rpartition(".")[2] for name in names})
            raise InputError(f"no layer is called {target!r}: there are {', '.join(known)}")
        found += matching
    return found
