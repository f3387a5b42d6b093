"""Low-rank adapters, by peft."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn

from flatminima.arguments import above, below, truth, whole
from flatminima.cards import Card
from flatminima.errors import InputError, require
from flatminima.reparam.registry import register
from flatminima.reparam.slot import Reparam

ADAPTED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
"""Layers that peft has adapters for, beside transformers' Conv1D."""


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
    layer, which is often new. `bake` adds BA to W0 and takes the adapters away. SWA and EMA average
    the baked weights: the mean of A times that of B is not the mean of BA, which may have a larger
    rank.

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
        InputError: a value out of its range, layers that the model does not have or that take no
            adapters, or peft is not installed. The model is then as it was.
    """

    changes_modules: ClassVar[bool] = True
    averages_baked: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        rank: int,
        alpha: float | None = None,
        dropout: float = 0.0,
        targets: str | int | Sequence[str] | None = None,
        head: bool = True,
    ) -> None:
        rank, dropout = whole("rank", rank), below("dropout", dropout, 0, 1)
        head = truth("head", head)
        alpha = rank if alpha is None else above("alpha", alpha)
        peft = require("peft", "peft")
        last = _head(model)
        chosen = _inner(model, last) if targets in (None, "") else _named(model, targets)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
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
        # peft refuses the rest too, but with the layers before it changed.
        for name in matching:
            kind = type(model.get_submodule(name))
            if not issubclass(kind, ADAPTED) and kind.__name__ != "Conv1D":
                raise InputError(
                    f"{name!r} is a {kind.__name__}, which takes no adapters: name layers that are "
                    "linear, convolutional or an embedding"
                )
        found += matching
    return found
