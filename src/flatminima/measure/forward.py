"""Hessian products by forward mode over reverse mode."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.autograd.forward_ad as dual
from torch import Tensor

from flatminima.measure.twice import TwiceError


class ForwardOverReverse:
    r"""$Hv = \frac{d}{dt} \nabla f(W + tv)$ at t = 0: a gradient whose every number has a tangent.

    The parameters become dual numbers in place, so that whoever holds them computes with tangents,
    and their values do not change. Exact up to rounding.

    Args:
        params: The parameters.
    """

    def __init__(self, params: list[Tensor]) -> None:
        self._params = params

    def add(
        self,
        loss: Callable[[], Tensor],
        directions: list[Tensor],
        blocks: Mapping[str, slice],
        count: int,
        products: Tensor,
    ) -> Tensor:
        """Add `count` times the products of one batch; returns its loss.

        Args:
            loss: The batch's loss.
            directions: The vectors, one tensor of shape (m, *parameter.shape) per parameter.
            blocks: Where each parameter lies in a row of `products`.
            count: The factor.
            products: Shape (m, n).

        Raises:
            TwiceError: torch has no forward mode for a function in it.
        """
        value: Tensor | None = None
        for row in range(len(products)):
            with dual.dual_level():
                with torch.no_grad():
                    for parameter, part in zip(self._params, directions, strict=True):
                        parameter.copy_(_dual(parameter.detach(), part[row]))
                try:
                    found = loss()
                    gradient = torch.autograd.grad(found, self._params, allow_unused=True)
                except (NotImplementedError, RuntimeError) as error:
                    if ("forward" in str(error) and "AD" in str(error)) or "jvp" in str(error):
                        reason = str(error).splitlines()[0]
                        raise TwiceError(reason, "give Hessian(..., backend='auto')") from error
                    raise
                for part, where in zip(gradient, blocks.values(), strict=True):
                    tangent = None if part is None else _parts(part).tangent
                    if tangent is not None:
                        products[row, where].add_(tangent.reshape(-1), alpha=count)
                value = _parts(found).primal.detach()
        return loss().detach() if value is None else value


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    made: Tensor = dual.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return made


def _parts(tensor: Tensor) -> dual.UnpackedDualTensor:
    found: dual.UnpackedDualTensor = dual.unpack_dual(tensor)  # type: ignore[no-untyped-call]
    return found
