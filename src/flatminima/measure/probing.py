"""Ways to spend a budget of products on a trace, round by round."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flatminima.measure.data_noise import BatchForms
from flatminima.measure.deflation import Deflation, LeaveOneOut, block_forms, extension
from flatminima.measure.operators import Operator
from flatminima.measure.results import mean_and_stderr
from flatminima.perturb.noise import Noise, Stream

ROUND = 10
"""Probes of a round."""

GAIN = 1.2
"""How much less variance must be promised for a sketch to be kept: probes alone need no memory."""

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
        may_change: Whether single probes may follow: Hutchinson's after the first 20 products, or
            `Rest` once more test vectors promise less than it.
        rel_error: The relative error that is asked for, which says how many would follow.
    """

    def __init__(
        self,
        operator: Operator,
        budget: int,
        seed: int,
        *,
        may_change: bool = False,
        rel_error: float | None = None,
    ) -> None:
        super().__init__(operator, budget, seed)
        self._may_change, self._rel_error = may_change, rel_error
        self._state = LeaveOneOut(operator.matmat)
        self._before: tuple[int, float] | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """With the number of test vectors."""
        return f"XTrace, {self.samples.shape[1]} normal test vectors"

    @property
    def left(self) -> bool:
        """Whether the budget allows another test vector."""
        return self.done + 2 <= self._budget

    def round(self) -> Probing:
        """Up to `ROUND` test vectors; half as many once an error is asked for and can be met."""
        count = self.samples.shape[1]
        room = round_size(self._operator, 0, (self._budget - self.done) // 2)
        size = min(room, self._width if count else ROUND)
        tests = probe_vectors(self._operator, range(count, count + size), self._seed, "normal")
        self._state.add(tests, self.batches.multiply(self._operator, tests))
        self.samples = self._state.samples(self._operator.blocks)
        self.done += 2 * size
        return self._better() if self._may_change and self.done >= 2 * ROUND else self

    def mean_and_stderr(self, samples: Tensor) -> tuple[float, float]:
        """The mean, and sqrt(2) times the leave-one-out error; see `hessian_trace`."""
        value, stderr = mean_and_stderr(samples)
        return value, math.sqrt(2) * stderr

    @property
    def _width(self) -> int:
        """Test vectors of a later round: wide blocks are cheaper, narrow ones stop sooner."""
        return ROUND if self._rel_error is None else ROUND // 2

    def _better(self) -> Probing:
        """What promises the least error for what is left of the budget."""
        state, operator, before = self._state, self._operator, self._before
        assert state.tests is not None
        count = self.samples.shape[1]
        self._before = count, state.rest
        if before is not None:
            stalls = self._stalls(count, before)
            return Rest(operator, self._budget, self._seed, self, state) if stalls else self
        # The variances of k + m of Hutchinson's estimates and of k + m as in `Rest`.
        whole, m = _mean_square(state.sketch), self._to_come(count)
        if whole * (count + m) > GAIN * state.rest * (2 * count + m):
            return self
        other = Hutchinson(operator, self._budget, self._seed)
        other.samples = block_forms(state.tests, state.sketch, operator.blocks)
        other.batches, other.done = self.batches, self.done
        return other

    def _stalls(self, count: int, before: tuple[int, float]) -> bool:
        """Whether the next round takes off less error than its products would as single probes."""
        more, rest, to_come = self._width, self._state.rest, self._to_come(count)
        if to_come <= 2 * more or rest <= 0:
            return False
        # The variance falls like a power of the number of test vectors.
        power = math.log(before[1] / rest) / math.log(count / before[0])
        falls_to = math.pow(1 + more / count, -max(power, 0.0))
        return falls_to > (count + to_come - more) / (count + to_come)

    def _to_come(self, count: int) -> int:
        """How many single probes of the rest the budget allows, or `rel_error` needs, if fewer."""
        to_come = self._budget - self.done
        aim = 0.0
        if self._rel_error is not None:
            aim = (self._rel_error * self.samples.sum(0).mean().item()) ** 2
        if aim <= 0:
            return to_come
        # The m where the variance in `Rest`, with s^2 twice the rest, is what is asked.
        a = 2 * self._state.rest / aim
        return min(to_come, math.ceil((a - 2 * count + math.sqrt(a * a + 4 * a * count)) / 2))


class Rest(Probing):
    """Probes, of one product each, of what XTrace's test vectors leave.

    Given these, a probe is unbiased, so it is uncorrelated with XTrace's mean, and about as far
    off as one of its k estimates. All samples count the same, and the variance of the mean with m
    probes is $(2k + m) s^2 / (k + m)^2$: that of k + m independent samples, but for the 2, which
    XTrace's estimates need; see `hessian_trace`.

    Args:
        operator: The operator.
        budget: Products.
        seed: Of the probes.
        earlier: What was done so far.
        state: Its test vectors.
    """

    def __init__(
        self, operator: Operator, budget: int, seed: int, earlier: Probing, state: LeaveOneOut
    ) -> None:
        super().__init__(operator, budget, seed)
        self.samples, self.batches, self.done = earlier.samples, earlier.batches, earlier.done
        self._found = self.samples.shape[1]
        self._state = Deflation(operator.matmat, state.basis, state.products)

    @property
    def name(self) -> str:  # type: ignore[override]
        """With its parts."""
        probes = self.samples.shape[1] - self._found
        return f"XTrace, {self._found} normal test vectors, and {probes} probes of the rest"

    def round(self) -> Probing:
        """Up to `ROUND` probes."""
        count = self.samples.shape[1]
        size = round_size(self._operator, self.done, self._budget)
        numbers = range(count, count + size)
        tests = probe_vectors(self._operator, numbers, self._seed, "rademacher")
        forms = self._state.samples(tests, self._operator.blocks)
        self.samples = torch.cat([self.samples, forms], 1)
        self.done += size
        return self

    def mean_and_stderr(self, samples: Tensor) -> tuple[float, float]:
        """The mean of all, and its error; see above."""
        value, stderr = mean_and_stderr(samples)
        return value, stderr * math.sqrt(1 + self._found / len(samples))


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
            basis = extension(None, sketch)
            self._state = Deflation(operator.matmat, basis, operator.matmat(basis))
            self.done += 2 * self._sketched
            return self
        size = round_size(operator, count, count + self._budget - self.done)
        numbers = range(self._sketched + count, self._sketched + count + size)
        tests = probe_vectors(operator, numbers, self._seed, "rademacher")
        self.samples = torch.cat([self.samples, self._state.samples(tests, operator.blocks)], 1)
        self.done += size
        return self


def _mean_square(columns: Tensor) -> float:
    norm = torch.linalg.vector_norm(columns, dtype=torch.float64)
    return float(norm.item() ** 2) / columns.shape[1]
