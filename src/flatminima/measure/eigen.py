"""The extreme eigenvalues of a symmetric operator."""

from __future__ import annotations

import time

import torch

from flatminima.errors import InputError, unknown
from flatminima.measure.cost import Meter
from flatminima.measure.lanczos import Lanczos, leading
from flatminima.measure.operators import Operator
from flatminima.measure.results import EigenEstimate
from flatminima.progress import Progress

_ORDERS = ("largest", "smallest", "magnitude")

BASIS_BYTES = 2**30
"""The most memory for the basis, if the user does not say."""


def top_eigenvalues(
    operator: Operator,
    k: int = 1,
    *,
    which: str = "largest",
    tol: float = 1e-3,
    max_steps: int = 100,
    max_basis: int | None = None,
    max_seconds: float | None = None,
    vectors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    keep_interrupted: bool = True,
) -> EigenEstimate:
    r"""The k extreme eigenvalues by block Lanczos, full reorthogonalization and thick restarts.

    Blocks of k vectors, so that an eigenvalue repeated up to k times is found as often, and one
    graph per batch serves k products; k = 1 is the plain Lanczos method. From
    $H Q_j = Q_j T_j + X_{j+1} B_j E_j^\top$ with $T_j s = \theta s$, the residual of $v = Q_j s$ is
    $\|B_j E_j^\top s\|$: it stops when that is at most tol |theta| for all k. Then each residual
    $\|Hv - \theta v\|$ is computed with one more product, which bounds the distance from theta to
    an eigenvalue of H whatever happened before. (That it is the extreme one is almost sure, since
    the start is random, but no finite number of products can prove it.)

    Cost: k HVPs a step and k at the end, 20 to 60 steps are usual for k = 1 and tol = 1e-3, fewer
    for larger k; steps k + 3 k vectors of memory. Where the basis would outgrow `max_basis` it is
    cut down to its leading Ritz vectors and goes on from there, which loses little.

    Source: Lanczos, 1950; Golub and Underwood, The block Lanczos method for computing eigenvalues,
    1977; the bound: Parlett, The Symmetric Eigenvalue Problem, 1998, section 4.5; Wu and Simon,
    Thick-restart Lanczos method for large symmetric eigenvalue problems, 2000.

    Args:
        operator: The operator, n x n.
        k: How many eigenvalues, 1 <= k <= n.
        which: "largest" (algebraic, in descending order), "smallest" (in ascending order) or
            "magnitude" (by absolute value, descending).
        tol: The relative residual to stop at.
        max_steps: The most Lanczos steps. `converged` says whether they were enough.
        max_basis: The most vectors in the basis, at least 3 k + 2 (or n). Default: what fits into 1
            GiB, but 4 k + 8 at least.
        max_seconds: Stop before the step that would take longer than this in all.
        vectors: Whether to return the vectors, shape (n, k).
        seed: Of the start vectors; the global random state is not touched.
        progress: Called with ("eigenvalues", steps done, max_steps).
        keep_interrupted: Whether an interrupt (Ctrl-C) returns what there is after a step, for one
            more product; otherwise it is raised.

    Raises:
        InputError: k, which, tol, max_steps, max_basis or max_seconds out of range.
    """
    n = operator.shape[0]
    if which not in _ORDERS:
        raise unknown("order of eigenvalues", which, _ORDERS)
    if not 1 <= k <= n:
        raise InputError(f"k is {k}: the operator has {n} eigenvalues, give 1 to {n}")
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}: give at least 1")
    if not tol > 0:
        raise InputError(f"tol is {tol}: give a number above 0, such as 1e-3")
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds is {max_seconds}: give a number above 0")
    if max_basis is not None and max_basis < min(n, 3 * k + 2):
        raise InputError(f"max_basis is {max_basis}: give at least {min(n, 3 * k + 2)} for k = {k}")
    meter = Meter(operator.device, operator.dtype, operator)
    fitting = max(BASIS_BYTES // (n * operator.dtype.itemsize), 4 * k + 8)
    lanczos = Lanczos(operator, k, seed, min(n, max_basis or fitting, max_steps * k))
    start, longest, steps, stopped = time.perf_counter(), 0.0, 0, "max_steps"
    try:
        while steps < max_steps:
            before = time.perf_counter()
            if steps and max_seconds is not None and before - start + longest > max_seconds:
                stopped = "max_seconds"
                break
            lanczos.step(k, which)
            steps += 1
            values, _, bounds = lanczos.ritz(k, which)
            if progress is not None:
                progress("eigenvalues", steps, max_steps)
            if lanczos.small(bounds, values, tol):
                stopped = "converged"
                break
            longest = max(longest, time.perf_counter() - before)
    except KeyboardInterrupt:
        if not keep_interrupted or lanczos.size < k:
            raise
        stopped = "interrupted"
    else:
        if progress is not None:
            progress("eigenvalues", steps, steps)
    _, coordinates, _ = lanczos.ritz(k, which)
    ritz = lanczos.combine(coordinates)
    products = operator.matmat(ritz.T).T
    values = (ritz * products).sum(1)
    residuals = torch.linalg.vector_norm(products - values[:, None] * ritz, dim=1)
    residuals, values = residuals.cpu().double(), values.cpu().double()
    order = leading(values, which)
    return EigenEstimate(
        tuple(values[order].tolist()),
        tuple(residuals[order].tolist()),
        steps,
        lanczos.small(residuals, values, tol),
        which,
        ritz[order.to(ritz.device)].T if vectors else None,
        stopped,
        method=f"block Lanczos, full reorthogonalization; {operator.description}",
        seed=seed,
        **meter.read(),
    )
