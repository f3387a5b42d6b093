"""Adam whose scale is the precision of a Gaussian posterior over the weights."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flatminima.errors import InputError


class VariationalAdam(Optimizer):
    r"""The update of Bayesian SAM: a mean W and a precision s for each weight.

        m <- beta1 m + (1 - beta1) (g + delta W)
        s <- beta2 s + (1 - beta2) (sqrt(s) |h| + delta + gamma)
        W <- W - lr m / s

    N(W, 1 / (N s)) is the posterior that W is the mean of, N the number of training samples. g is
    `.grad`; h is a gradient at a draw from the posterior, which `flatminima.BSAM` leaves in
    `curvature_gradients`. Used alone, h = g. There is no bias correction: s starts at
    `initial_precision`, so the first steps are as long as those of SGD at lr / initial_precision.

    Cost: two weight-sized states, as Adam.

    Source: Möllenhoff, Khan, "SAM as an Optimal Relaxation of Bayes", 2023, arXiv 2210.01620. There
    delta is the prior precision divided by N. The order of the three lines is recalled from the
    paper; the code released with it divides m by the s before its update.

    Args:
        params: Parameters, or groups of them with their own `lr`, `betas`, `prior_precision` and
            `damping`.
        lr: Learning rate; 0.25 to 1 in the paper.
        num_samples: N, the number of training samples.
        betas: (beta1, beta2).
        prior_precision: delta, per sample; it acts as weight decay does.
        damping: gamma, the least precision that s is drawn to.
        initial_precision: s at the start.

    Raises:
        InputError: an option out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.5,
        *,
        num_samples: int,
        betas: tuple[float, float] = (0.9, 0.999),
        prior_precision: float = 0.0,
        damping: float = 0.1,
        initial_precision: float = 1.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": tuple(betas),
            "prior_precision": prior_precision,
            "damping": damping,
            "num_samples": num_samples,
            "initial_precision": initial_precision,
        }
        super().__init__(params, defaults)
        self.curvature_gradients: dict[Tensor, Tensor] = {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.curvature_gradients = {}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; it may carry options of its own."""
        _check({**self.defaults, **param_group})
        for name in ("num_samples", "initial_precision"):
            if param_group.get(name, self.defaults[name]) != self.defaults[name]:
                raise InputError(f"{name} is of the whole optimizer: leave it out of the group")
        super().add_param_group(param_group)

    @property
    def num_samples(self) -> int:
        """N, the number of training samples."""
        return int(self.defaults["num_samples"])

    def precision(self, parameter: Tensor) -> Tensor:
        """s of a parameter, in its shape, float32 at least; at the start its initial value."""
        state = self.state[parameter]
        if "precision" not in state:
            dtype = torch.promote_types(parameter.dtype, torch.float32)
            state["momentum"] = torch.zeros_like(parameter, dtype=dtype)
            state["precision"] = torch.full_like(
                parameter, self.defaults["initial_precision"], dtype=dtype
            )
        precision: Tensor = state["precision"]
        return precision

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, along `.grad`.

        Args:
            closure: Zeroes the gradients, runs forward and backward, and returns the loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            delta, gamma = group["prior_precision"], group["damping"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                s = self.precision(parameter)
                m = self.state[parameter]["momentum"]
                g = parameter.grad.to_dense().to(s.dtype)
                h = self.curvature_gradients.get(parameter, g)
                m.mul_(beta1).add_(g + delta * parameter, alpha=1 - beta1)
                scale = s.sqrt() * h.abs() + delta + gamma
                s.mul_(beta2).add_(scale, alpha=1 - beta2)
                parameter.sub_((m / s * group["lr"]).to(parameter.dtype))
        self.curvature_gradients = {}
        return loss


def _check(options: Mapping[str, Any]) -> None:
    for name in ("lr", "prior_precision", "damping", "num_samples", "initial_precision"):
        if isinstance(options[name], bool) or not isinstance(options[name], numbers.Real):
            raise InputError(f"{name} must be a number, not {options[name]!r}")
    for name in ("lr", "prior_precision", "damping"):
        if not 0 <= options[name] < math.inf:
            raise InputError(f"{name} must be finite and at least 0, not {options[name]!r}")
    for name in ("num_samples", "initial_precision"):
        if not 0 < options[name] < math.inf:
            raise InputError(f"{name} must be finite and above 0, not {options[name]!r}")
    if not options["damping"] + options["prior_precision"]:
        raise InputError("damping and prior_precision are both 0, so that m / s may be 0 / 0")
    if options["num_samples"] != int(options["num_samples"]):
        raise InputError(f"num_samples must be whole, not {options['num_samples']!r}")
    if len(options["betas"]) != 2 or not all(0 <= beta < 1 for beta in options["betas"]):
        raise InputError(f"betas must be two numbers in [0, 1), not {options['betas']!r}")
