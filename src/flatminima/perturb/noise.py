"""Random weight displacements: unit-variance distributions, and streams that are addressed.

A draw is addressed by counters (seed, tensor, step, draw, rank) and never by the order in which
draws were made. So a resumed run, a run with its parameters in another order and a run that cuts
its batch into more pieces draw the same noise, and the global random state is not touched.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flatminima.errors import InputError, unknown
from flatminima.perturb.noise_table import fill_from_table

_UINT32 = 0xFFFFFFFF

SMALL = (1 << 15) - 64
"""Numbers that torch draws, scales and adds without threads of its own, within a core's cache. A
multiple of what each distribution draws together."""

LARGE = 1 << 18
"""Numbers at which calling torch no longer counts, for what is quicker than the call."""


@dataclass(frozen=True)
class Noise:
    """A symmetric distribution with mean 0 and variance 1.

    Attributes:
        name: Its name.
        fourth_moment: E[z^4], which sets the variance of curvature estimates: for a quadratic with
            Hessian H, Var[z'Hz / 2] = ((E[z^4] - 1) sum_i H_ii^2 + 2 sum_{i != j} H_ij^2) / 4.
        fill: Fills a tensor in place with draws from a generator.
        piece: How many numbers to draw at a time on a CPU, where that gives what drawing all at
            once does; 0: it does not.
    """

    name: str
    fourth_moment: float
    fill: Callable[[Tensor, torch.Generator], Tensor]
    piece: int = 0

    @staticmethod
    def named(name: str) -> Noise:
        """The distribution of that name.

        Raises:
            InputError: there is none; for "cauchy" with the reason.
        """
        if not isinstance(name, str):
            raise InputError(f"noise must be a name, not {name!r}")
        if name == "cauchy":
            raise InputError(
                "noise 'cauchy' has no variance, so sigma^2/2 Tr H means nothing: "
                "use 'laplace' for heavy tails"
            )
        if name not in DISTRIBUTIONS:
            raise unknown("noise distribution", name, DISTRIBUTIONS)
        return DISTRIBUTIONS[name]

    def sample(self, out: Tensor, generator: torch.Generator) -> Tensor:
        """Fill `out`, contiguous, in place with noise of variance 1.

        Args:
            out: float32 or float64; or complex, whose real and imaginary parts are two coordinates.
            generator: What to draw from.
        """
        self.fill(torch.view_as_real(out) if out.is_complex() else out, generator)
        return out


def _normal(out: Tensor, generator: torch.Generator) -> Tensor:
    return out.normal_(generator=generator)


def _uniform(out: Tensor, generator: torch.Generator) -> Tensor:
    return out.uniform_(-math.sqrt(3), math.sqrt(3), generator=generator)


def _laplace(out: Tensor, generator: torch.Generator) -> Tensor:
    # E - E' of two unit exponentials is Laplace(1), whose variance is 2.
    other = torch.empty_like(out).exponential_(generator=generator)
    return out.exponential_(generator=generator).sub_(other).mul_(1 / math.sqrt(2))


def _rademacher(out: Tensor, generator: torch.Generator) -> Tensor:
    return out.random_(0, 2, generator=generator).mul_(2).sub_(1)


def _binomial(out: Tensor, generator: torch.Generator) -> Tensor:
    # Binomial(4, 1/2) counts the ones among 4 fair bits; its mean 2 is taken off.
    bits = out.random_(0, 16, generator=generator).to(torch.uint8)
    ones = (bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3)
    return out.copy_(ones).sub_(2)


DISTRIBUTIONS = {
    noise.name: noise
    for noise in (
        Noise("normal", 3.0, _normal, SMALL),
        Noise("table", 3.0, fill_from_table, LARGE),
        Noise("laplace", 6.0, _laplace),
        Noise("uniform", 9 / 5, _uniform, SMALL),
        Noise("rademacher", 1.0, _rademacher, SMALL),
        Noise("binomial", 5 / 2, _binomial, SMALL),
    )
}


@dataclass(frozen=True)
class Scale:
    """What the strength of a perturbation is relative to.

    Attributes:
        name: "absolute": nothing. "layer": the root mean square of the parameter tensor. "filter":
            that of each slice along its first dimension; of the tensor where it has one dimension.
    """

    name: str

    @staticmethod
    def named(name: str) -> Scale:
        """The scale of that name.

        Raises:
            InputError: there is none.
        """
        if name not in ("absolute", "layer", "filter"):
            raise unknown("scale", name, ("absolute", "layer", "filter"))
        return Scale(name)

    def apply(self, offset: Tensor, weight: Tensor) -> Tensor:
        """Multiply an offset in place by the scale that a weight tensor, at W, gives it."""
        if self.name == "absolute":
            return offset
        dims = tuple(range(1, weight.dim())) if self.name == "filter" and weight.dim() > 1 else None
        square = weight.detach().abs().to(offset.abs().dtype).square()
        return offset.mul_(square.mean(dim=dims, keepdim=dims is not None).sqrt())


class Stream:
    """Generators of random numbers addressed by counters.

    On a CPU torch seeds its Mersenne twister with 32 bits only, so hashed seeds could collide and
    give two layers the same noise. The low 32 bits are therefore a bijection of the tensor's id for
    fixed other counters: tensors of one draw never share a stream.

    Args:
        seed: Names the stream; any integer.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}

    def generator(self, device: torch.device, tensor_id: int, *counters: int) -> torch.Generator:
        """The generator for one tensor of one draw, at its start.

        The same object serves each call on a device: draw from it before asking for the next.

        Args:
            device: Where the numbers are drawn.
            tensor_id: Tells the tensors of a draw apart, in [0, 2^32).
            counters: Which draw: step, perturbation, rank.
        """
        if device not in self._generators:
            self._generators[device] = torch.Generator(device)
        return self._generators[device].manual_seed(self.address(tensor_id, *counters))

    def address(self, tensor_id: int, *counters: int) -> int:
        """The seed of that generator."""
        key = hashlib.blake2b(repr((self.seed, *counters)).encode(), digest_size=8).digest()
        high, low = int.from_bytes(key[:4]), int.from_bytes(key[4:])
        return high << 32 | _mix((low + tensor_id) & _UINT32)


def _mix(x: int) -> int:
    """A bijection of 32-bit integers in which neighbours land far apart (as MurmurHash3 ends)."""
    x ^= x >> 16
    x = x * 0x85EBCA6B & _UINT32
    x ^= x >> 13
    x = x * 0xC2B2AE35 & _UINT32
    return x ^ x >> 16


def tensor_ids(names: list[str]) -> list[int]:
    """A distinct 32-bit id for each tensor name, which depends on the name alone.

    Only where two names hash alike does the later one move on by one.
    """
    taken: set[int] = set()
    ids = []
    for name in names:
        digest = hashlib.blake2b(name.encode(), digest_size=4).digest()
        number = int.from_bytes(digest)
        while number in taken:
            number = (number + 1) & _UINT32
        taken.add(number)
        ids.append(number)
    return ids
