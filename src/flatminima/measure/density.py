"""The spectral density of an operator, and the traces of functions of it."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure.cost import Meter
from flatminima.measure.operators import Operator
from flatminima.measure.probing import probe_vectors
from flatminima.measure.spectrum import SpectralDensity
from flatminima.progress import Progress

BASIS_BYTES = 2**30
"""The most memory for the bases of the probes that run at once, if more than one."""


def spectral_density(
    operator: Operator,
    *,
    probes: int = 10,
    steps: int = 30,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    keep_interrupted: bool = True,
) -> SpectralDensity:
    r"""The density of eigenvalues by stochastic Lanczos quadrature.

    From a random unit vector v, m steps of Lanczos with full reorthogonalization give a tridiagonal
    T with eigenvalues $\theta_k$ and eigenvectors $u_k$, and $v^\top f(H) v \approx
    \sum_k u_{k1}^2 f(\theta_k)$: exact for polynomials of degree up to 2m - 1. Over directions,
    $E[v^\top f(H) v] = \mathrm{Tr} f(H) / n$, so the mean over probes is the density of eigenvalues
    as far as m steps resolve it, and the spread between probes is its error. All probes run at
    once, on one graph per batch and step, as far as 1 GiB allows.

    Cost: probes x steps HVPs; steps + 2 vectors of memory for each probe that runs at once.

    Source: Golub and Meurant, Matrices, Moments and Quadrature, 1994; Ubaru, Chen, Saad, Fast
    estimation of tr(f(A)) via stochastic Lanczos quadrature, 2017.

    Args:
        operator: The operator.
        probes: Random vectors, at least 2, for an error.
        steps: Lanczos steps m.
        max_seconds: Stop before the step that would take longer than this in all. Probes that were
            not finished are left out; if none was, all end after fewer steps.
        seed: Of the probes; the global random state is not touched.
        progress: Called with ("density", products done, probes x steps).
        keep_interrupted: Whether an interrupt (Ctrl-C) returns what there is, as for `max_seconds`;
            otherwise it is raised.

    Raises:
        InputError: probes < 2; steps < 1; max_seconds not above 0.
    """
    if probes < 2:
        raise InputError(f"probes is {probes}: give at least 2, for an error")
    if steps < 1:
        raise InputError(f"steps is {steps}: give at least 1")
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds is {max_seconds}: give a number above 0")
    meter = Meter(operator.device, operator.dtype, operator)
    n = operator.shape[0]
    steps = min(steps, n)
    most = max(2, BASIS_BYTES // (steps * n * operator.dtype.itemsize))
    groups = [range(i, min(i + most, probes)) for i in range(0, probes, most)]
    clock = _Clock(max_seconds)
    finished: list[Tridiagonals] = []
    stopped = "probes"
    try:
        for group in groups:
            starts = probe_vectors(operator, group, seed, "normal").T
            running = Tridiagonals(operator, starts, steps)
            for _ in range(steps):
                if (finished or running.done) and clock.over():
                    stopped = "max_seconds"
                    break
                with clock:
                    running.step()
                if progress is not None:
                    done = group.start * steps + running.done * len(group)
                    progress("density", done, probes * steps)
            if stopped == "max_seconds":
                break
            finished.append(running)
    except KeyboardInterrupt:
        if not keep_interrupted or not (finished or running.done):
            raise
        stopped = "interrupted"
    else:
        if progress is not None:
            progress("density", done, done)
    pairs = [pair for part in finished or [running] for pair in part.quadratures()]
    return SpectralDensity(
        tuple(tuple(nodes.tolist()) for nodes, _ in pairs),
        tuple(tuple(weights.tolist()) for _, weights in pairs),
        n,
        stopped,
        method=f"stochastic Lanczos quadrature, {len(pairs)} probes, {len(pairs[0][0])} steps; "
        f"{operator.description}",
        seed=seed,
        **meter.read(),
    )


class Tridiagonals:
    """Lanczos from several starts at once, each with a basis of its own.

    Args:
        operator: The operator.
        starts: Shape (probes, n).
        steps: The most steps.
    """

    def __init__(self, operator: Operator, starts: Tensor, steps: int) -> None:
        probes, n = starts.shape
        self._operator = operator
        self._basis = starts.new_zeros(probes, steps, n)
        self._next = starts / torch.linalg.vector_norm(starts, dim=1, keepdim=True)
        self._matrix = torch.zeros(probes, steps, steps, dtype=torch.float64)
        self._eps = torch.finfo(starts.dtype).eps
        self.done = 0

    def step(self) -> None:
        """One product for each start."""
        i = self.done
        self._basis[:, i] = self._next
        known = self._basis[:, : i + 1]
        w = self._operator.matmat(self._next.T).T.clone()
        self._matrix[:, i, i] = torch.linalg.vecdot(self._next, w).cpu().double()
        for _ in range(2):
            inner = torch.bmm(known, w[:, :, None])
            w -= torch.bmm(known.mT, inner)[:, :, 0]
        length = torch.linalg.vector_norm(w, dim=1).cpu().double()
        # A space that is exhausted goes on as zeros, which have no weight.
        size = self._matrix.abs().amax((1, 2))
        length = torch.where(length > 10 * self._eps * size, length, 0.0)
        if i + 1 < self._matrix.shape[1]:
            self._matrix[:, i, i + 1] = self._matrix[:, i + 1, i] = length
        scale = torch.where(length > 0, 1 / length, 0.0)
        self._next = w * scale.to(w)[:, None]
        self.done += 1

    def quadratures(self) -> list[tuple[Tensor, Tensor]]:
        """Nodes and weights of each start, ascending, float64."""
        values, vectors = torch.linalg.eigh(self._matrix[:, : self.done, : self.done])
        return list(zip(values, vectors[:, 0].square(), strict=True))


class _Clock:
    """Says when the next step would take too long, going by the longest so far."""

    def __init__(self, most: float | None) -> None:
        self._most, self._longest, self._start = most, 0.0, time.perf_counter()

    def over(self) -> bool:
        spent = time.perf_counter() - self._start
        return self._most is not None and spent + self._longest > self._most

    def __enter__(self) -> None:
        self._before = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._longest = max(self._longest, time.perf_counter() - self._before)
