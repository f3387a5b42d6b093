"""Measure a model and leave it as it was."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.objectives import Objective
from flatminima.perturb.shards import is_sharded


@contextmanager
def untouched(
    model: nn.Module, objective: Objective, device: torch.device, *, eval_mode: bool = True
) -> Iterator[None]:
    """Run forward passes inside; afterwards every trace of them is gone, also after an exception.

    Training flags (module by module), buffers (bit for bit) and torch's global random state are put
    back. Since the random state is put back, each pass starts from the same one: a loader shuffles
    and augments the same way in each, as far as it draws from torch.

    Args:
        model: The model.
        objective: Its modules and buffers are guarded too, if it is a module.
        device: The device whose random state is kept, besides the CPU's.
        eval_mode: Whether to run in eval mode. Otherwise the flags stay as they are.
    """
    parts = [model, objective] if isinstance(objective, nn.Module) else [model]
    modules = [module for part in parts for module in part.modules()]
    flags = [module.training for module in modules]
    buffers = [
        (module._buffers, name, tensor, tensor.clone())
        for module in modules
        for name, tensor in module._buffers.items()
        if tensor is not None
    ]
    with (
        torch.random.fork_rng([device] if device.type != "cpu" else [], device_type=device.type),
        torch.autocast(device.type, enabled=False),
    ):
        try:
            if eval_mode:
                for part in parts:
                    part.eval()
            yield
        finally:
            for module, flag in zip(modules, flags, strict=True):
                module.training = flag
            with torch.no_grad():
                for owner, name, tensor, saved in buffers:
                    owner[name] = tensor
                    # Values, since BatchNorm's kernels write without a new tensor version.
                    if not torch.equal(tensor, saved):
                        tensor.copy_(saved)


def check_recording() -> None:
    """Refuse to compute gradients where autograd records nothing.

    Raises:
        InputError: inside `torch.inference_mode`, which `torch.enable_grad` does not end.
    """
    if torch.is_inference_mode_enabled():
        raise InputError(
            "torch.inference_mode is on, and gradients are needed: measure outside of it"
        )


class RandomState:
    """Torch's global random state at a moment: the CPU's and one device's.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cpu = torch.get_rng_state()
        self._other: Tensor | None = None
        if device.type != "cpu":
            self._other = torch.get_device_module(device).get_rng_state(device)

    def restore(self) -> None:
        """Go on from that moment."""
        torch.set_rng_state(self._cpu)
        if self._other is not None:
            torch.get_device_module(self._device).set_rng_state(self._other, self._device)


def free_parameters(
    model: nn.Module, params: Iterable[Tensor] | Iterable[str] | str | None
) -> dict[str, Tensor]:
    """The parameters to measure, by name, in the model's order.

    Args:
        model: The model.
        params: Which of its parameters: tensors, or names with wildcards (`*`, `?`, `[...]`), which
            choose among those that require a gradient; None for all that do.

    Raises:
        InputError: there is none, one is not the model's or does not require a gradient, a name
            chooses nothing, or they are not all float32 or all float64, on one device, each whole.
    """
    named: dict[str, Tensor] = dict(model.named_parameters())
    free = {name: p for name, p in named.items() if p.requires_grad}
    given = [params] if isinstance(params, (str, Tensor)) else list(params or ())
    patterns = [pattern for pattern in given if isinstance(pattern, str)]
    if params is None:
        chosen = free
    elif not given:
        raise InputError("params is empty: leave it out to measure all parameters")
    elif patterns:
        if len(patterns) < len(given):
            raise InputError("params has names and tensors: give one or the other")
        chosen = _matching(named, free, patterns)
    else:
        wanted = {id(p) for p in given}
        chosen = {name: p for name, p in named.items() if id(p) in wanted}
        if len(chosen) < len(wanted):
            raise InputError("params has a tensor that is no parameter of the model: leave it out")
    if not chosen:
        raise InputError(
            "no parameter of the model requires a gradient: "
            "call requires_grad_(True) on those to measure"
        )
    for name, parameter in chosen.items():
        if not parameter.dtype.is_floating_point:
            raise InputError(
                f"parameter {name!r} is {parameter.dtype}, which has no derivative: leave it out"
            )
        if not parameter.requires_grad:
            raise InputError(f"parameter {name!r} does not require a gradient: leave it out")
        if parameter.dtype not in (torch.float32, torch.float64):
            raise InputError(
                f"parameter {name!r} is {parameter.dtype}, too coarse for curvature: measure in "
                "flatminima.measure.in_float32(model, objective, batches), or a copy, "
                "copy.deepcopy(model).float()"
            )
        if is_sharded(parameter):
            raise InputError(
                f"parameter {name!r} is sharded over processes (FSDP): measure the whole model, "
                "from a full state dict"
            )
    if len({(p.dtype, p.device) for p in chosen.values()}) > 1:
        raise InputError(
            "the parameters are of several dtypes or devices: bring the model to one, "
            "or measure the parts one by one with params="
        )
    return chosen


def _matching(
    named: dict[str, Tensor], free: dict[str, Tensor], patterns: list[str]
) -> dict[str, Tensor]:
    """The free ones whose name matches one of the patterns, each of which must match one."""
    for pattern in patterns:
        if fnmatch.filter(free, pattern):
            continue
        if frozen := fnmatch.filter(named, pattern):
            raise InputError(
                f"params {pattern!r} matches only what does not require a gradient "
                f"({frozen[0]!r}): call requires_grad_(True) on it, or leave it out"
            )
        raise unknown("trainable parameter", pattern, free)
    return {
        name: p
        for name, p in free.items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
