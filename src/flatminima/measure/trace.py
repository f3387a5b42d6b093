"""The trace of an operator from random probes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flatminima.errors import InputError
from flatminima.measure.cost import Meter
from flatminima.measure.operators import Operator
from flatminima.measure.results import Estimate, TraceEstimate
from flatminima.perturb.noise import Noise, Stream
from flatminima.progress import Progress

_METHOD = "Hutchinson, Rademacher probes"
_BLOCK = 10
_BLOCK_BYTES = 2**30


def hessian_trace(
    operator: Operator,
    *,
    num_probes: int = 100,
    rel_error: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TraceEstimate:
    r"""Hutchinson's estimate of the trace, whole and by block.

    $\mathrm{Tr}\,H = E[z^\top H z]$ for random signs z (Rademacher), whose variance
    $2(\|H\|_F^2 - \sum_i H_{ii}^2)$ is the least among probes with independent entries. The same
    products give each block's trace, $E[z_b^\top (Hz)_b]$, so a layer costs nothing extra.

    With `rel_error` it stops when stderr / |value| <= rel_error, looked at after every 10 probes.
    Stopping at a lucky moment makes the error a little too small: for intervals that cover as often
    as they say, fix `num_probes`.

    Cost: one HVP a probe, one gradient for 10 probes; memory for those 10 probes and their
    products, but for fewer where 10 would take more than 1 GiB.

    Source: Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989.

    Args:
        operator: The operator.
        num_probes: Probes, or the most of them if `rel_error` is given.
        rel_error: The relative standard error to stop at.
        seed: Probe j depends on (seed, j) alone; the global random state is not touched.
        progress: Called with ("trace", probes done, num_probes).

    Raises:
        InputError: num_probes < 1, or rel_error not above 0.
    """
    if num_probes < 1:
        raise InputError(f"num_probes is {num_probes}: give at least 1")
    if rel_error is not None and not rel_error > 0:
        raise InputError(f"rel_error is {rel_error}: give a number above 0, such as 0.05")
    meter = Meter(operator.device, operator.dtype, operator)
    n = operator.shape[0]
    most = max(1, _BLOCK_BYTES // (n * operator.dtype.itemsize))
    samples = torch.empty(len(operator.blocks), 0, dtype=torch.float64)
    while (done := samples.shape[1]) < num_probes:
        size = min(most, num_probes - done, _BLOCK - done % _BLOCK)
        samples = torch.cat([samples, _samples(operator, range(done, done + size), seed)], 1)
        done += size
        if progress is not None:
            progress("trace", done, num_probes)
        if rel_error is not None and done % _BLOCK == 0:
            value, stderr = mean_and_stderr(samples.sum(0))
            if stderr <= rel_error * abs(value):
                break
    if progress is not None:
        progress("trace", done, done)
    count, cost = samples.shape[1], meter.read()
    blocks = {
        name: Estimate(*mean_and_stderr(row), count, method=_METHOD, seed=seed, **cost)
        for name, row in zip(operator.blocks, samples, strict=True)
    }
    whole = mean_and_stderr(samples.sum(0))
    return TraceEstimate(*whole, count, method=_METHOD, seed=seed, **cost, blocks=blocks)


def mean_and_stderr(samples: Tensor) -> tuple[float, float]:
    """The mean of independent samples, shape (m,), and its standard error; NaN for m = 1."""
    m = len(samples)
    return samples.mean().item(), samples.std().item() / math.sqrt(m) if m > 1 else math.nan


def _samples(operator: Operator, probes: range, seed: int) -> Tensor:
    """z_b'(Hz)_b of each block and probe, shape (blocks, probes), float64 on the CPU."""
    stream, signs = Stream(seed), Noise.named("rademacher")
    z = torch.empty(len(probes), operator.shape[0], dtype=operator.dtype, device=operator.device)
    for row, probe in zip(z, probes, strict=True):
        signs.sample(row, stream.generator(operator.device, 0, probe))
    products = operator.matmat(z.T).T
    forms = [torch.linalg.vecdot(z[:, b], products[:, b]) for b in operator.blocks.values()]
    return torch.stack(forms).cpu().double()
