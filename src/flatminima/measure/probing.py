"""Ways to spend a budget of products on a trace, round by round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flatminima.measure.data_noise import BatchForms
from flatminima.measure.deflation import Deflation, LeaveOneOut, block_forms
from flatminima.measure.operators import Operator
from flatminima.measure.results import mean_and_stderr
from flatminima.perturb.noise import Noise, Stream

ROUND = 10
"""Probes of a round."""

BLOCK_BYTES = 2**30
"""The most memory for the vectors of one call of `matmat`, if more than one."""


def probe_vectors(operator: Operator, probes: range, seed: int, noise: str) -> Tensor:
    """Random vectors, as columns, shape (n, m); the j-th depends on (seed, j) alone."""
    stream, distribution = Stream(seed), Noise.named(noise)
    rows = torch.empty(len(probes), operator.shape[0], dtype=operator.dtype, device=operator.device)
    for row, probe in zip(rows, probes, strict=True):
        distribution.sample(row, stream.generator(operator.device, 0, probe))
    return rows.T


def round_size(operator: Operator, done: int, most: int) -> int:
    """How many vectors to take next: as far as the next multiple of `ROUND`, memory permitting."""
    fitting = max(1, BLOCK_BYTES // (operator.shape[0] * operator.dtype.itemsize))
    return min(fitting, most - done, ROUND - done % ROUND)


class Probing(ABC):
    """A budget of products being spent.

    Attributes:
        done: Products made.
        samples: Estimates of each block's trace, shape (blocks, m), float64 on the CPU.
        batches: The forms of single batches.
    """

    name: str

    def __init__(self, operator: Operator, budget: int, seed: int) -> None:
        self._operator, self._budget, self._seed = operator, budget, seed
        self.done = 0
        self.samples = torch.empty(len(operator.blocks), 0, dtype=torch.float64)
        self.batches = BatchForms()

    @property
    def left(self) -> bool:
        """Whether the budget allows another round."""
        return self.done < self._budget

    @property
    def ready(self) -> bool:
        """Whether there is an estimate with an error."""
        return self.samples.shape[1] > 1

    @abstractmethod
    def round(self) -> Probing:
        """Spend a little; what comes back is to be gone on with."""

    def mean_and_stderr(self, samples: Tensor) -> tuple[float, float]:
        """The estimate and its standard error from samples of shape (m,)."""
        return mean_and_stderr(samples)

    def data_stderr(self) -> float:
        """The standard error of the trace over other data."""
        return self.batches.stderr()


class Exact(Probing):
    """Unit vectors, all of them: the diagonal itself."""

    name = "exact, all unit vectors"

    @property
    def ready(self) -> bool:
        """Only the whole diagonal is an estimate."""
        return not self.left

    def round(self) -> Probing:
        """A few entries of the diagonal."""
        operator = self._operator
        n = operator.shape[0]
        size = round_size(operator, self.done, n)
        rows = torch.zeros(size, n, dtype=operator.dtype, device=operator.device)
        rows[range(size), range(self.done, self.done + size)] = 1
        products = self.batches.multiply(operator, rows.T)
        found = block_forms(rows.T, products, operator.blocks).sum(1, keepdim=True)
        self.samples = found + (self.samples if self.done else 0)
        self.done += size
        return self

    def mean_and_stderr(self, samples: Tensor) -> tuple[float, float]:
        """The sum, without error."""
        return samples.sum().item(), 0.0

    def data_stderr(self) -> float:
        """The standard error of the trace over other data."""
        return self.batches.stderr(exact=True)


class Hutchinson(Probing):
    """Random signs z and z'Hz."""

    name = "Hutchinson, Rademacher probes"

    def round(self) -> Probing:
        """Up to `ROUND` probes."""
        count = self.samples.shape[1]
        size = round_size(self._operator, count, count + self._budget - self.done)
        z = probe_vectors(self._operator, range(count, count + size), self._seed, "rademacher")
        products = self.batches.multiply(self._operator, z)
        forms = block_forms(z, products, self._operator.blocks)
        self.samples = torch.cat([self.samples, forms], 1)
        self.done += size
        return self


class XTrace(Probing):
    """Leave-one-out estimates.

    Args:
        operator: The operator.
        budget: Products; two for each test vector.
        seed: Of the test vectors.
        may_change: Whether the rest is Hutchinson's, should that be better after the first round.
    """

    def __init__(
        self, operator: Operator, budget: int, seed: int, *, may_change: bool = False
    ) -> None:
        super().__init__(operator, budget, seed)
        self._may_change = may_change
        self._state = LeaveOneOut(operator.matmat)

    @property
    def name(self) -> str:  # type: ignore[override]
        """With the number of test vectors."""
        return f"XTrace, {self.samples.shape[1]} normal test vectors"

    @property
    def left(self) -> bool:
        """Whether the budget allows another test vector."""
        return self.done + 2 <= self._budget

    def round(self) -> Probing:
        """Up to `ROUND` test vectors."""
        count = self.samples.shape[1]
        size = round_size(self._operator, count, count + (self._budget - self.done) // 2)
        tests = probe_vectors(self._operator, range(count, count + size), self._seed, "normal")
        self._state.add(tests, self.batches.multiply(self._operator, tests))
        self.samples = self._state.samples(self._operator.blocks)
        self.done += 2 * size
        if self._may_change and count + size >= ROUND:
            self._may_change = False
            return self._better()
        return self

    def mean_and_stderr(self, samples: Tensor) -> tuple[float, float]:
        """The mean, and sqrt(2) times the leave-one-out error; see `hessian_trace`."""
        value, stderr = mean_and_stderr(samples)
        return value, math.sqrt(2) * stderr

    def _better(self) -> Probing:
        """Hutchinson's method with the forms so far, if it promises less error at equal cost."""
        state, operator = self._state, self._operator
        assert state.tests is not None
        forms = block_forms(state.tests, state.sketch, operator.blocks)
        _, own = self.mean_and_stderr(self.samples.sum(0))
        if own**2 <= forms.sum(0).var().item() / self.done:
            return self
        other = Hutchinson(operator, self._budget, self._seed)
        other.samples, other.batches, other.done = forms, self.batches, self.done
        return other


class HutchPlusPlus(Probing):
    """A sketch of the large part, then probes of the rest."""

    def __init__(self, operator: Operator, budget: int, seed: int) -> None:
        super().__init__(operator, budget, seed)
        self._sketched = budget // 3
        self._state: Deflation | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """With its parts."""
        return f"Hutch++, sketch of {self._sketched}, {self.samples.shape[1]} probes of the rest"

    def round(self) -> Probing:
        """The sketch, the first time; afterwards up to `ROUND` probes."""
        operator, count = self._operator, self.samples.shape[1]
        if self._state is None:
            tests = probe_vectors(operator, range(self._sketched), self._seed, "rademacher")
            sketch = self.batches.multiply(operator, tests)
            self._state = Deflation(operator.matmat, sketch)
            self.done += 2 * self._sketched
            return self
        size = round_size(operator, count, count + self._budget - self.done)
        numbers = range(self._sketched + count, self._sketched + count + size)
        tests = probe_vectors(operator, numbers, self._seed, "rademacher")
        self.samples = torch.cat([self.samples, self._state.samples(tests, operator.blocks)], 1)
        self.done += size
        return self
