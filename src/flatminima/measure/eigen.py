"""The extreme eigenvalues of a symmetric operator."""

from __future__ import annotations

import math
import time

import torch

from flatminima.errors import InputError, unknown
from flatminima.measure.cost import Meter
from flatminima.measure.lanczos import Lanczos, leading
from flatminima.measure.memory import free_bytes, words
from flatminima.measure.operators import Operator
from flatminima.measure.results import EigenEstimate
from flatminima.progress import Progress

_ORDERS = ("largest", "smallest", "magnitude")

WIDEST = 3
"""Vectors of a block, if the user does not say."""

BASIS_BYTES = 2**30
"""The most memory for the basis, if the user does not say."""


def top_eigenvalues(
    operator: Operator,
    k: int = 1,
    *,
    which: str = "largest",
    tol: float = 1e-3,
    block: int | None = None,
    max_steps: int | None = None,
    max_basis: int | None = None,
    max_seconds: float | None = None,
    vectors: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    keep_interrupted: bool = True,
) -> EigenEstimate:
    r"""The k extreme eigenvalues by block Lanczos, full reorthogonalization and thick restarts.

    A step multiplies a block of b vectors on one graph per batch, and an eigenvalue repeated up to
    b times is found as often; b = 1 is the plain Lanczos method, which needs the fewest products.
    From $H Q_j = Q_j T_j + X_{j+1} B_j E_j^\top$ with $T_j s = \theta s$, the residual of
    $v = Q_j s$ is $\|B_j E_j^\top s\|$: it stops when that is at most tol |theta| for all k. An
    eigenvalue of H lies within $\|Hv - \theta v\|$ of theta. (That it is the extreme one is almost
    sure, since the start is random, but no finite number of products can prove it.) Up to three
    residuals are computed with one more product each; of more, the residual of a random
    combination of all v with one more product, and each only where that is not what they add up to.

    Cost: b HVPs a step and 1 to 3 at the end, 20 to 60 steps are usual for k = 1 and tol = 1e-3,
    about 100 products in all for k = 20; steps b + 3 k vectors of memory. Where the basis would
    outgrow `max_basis` it is cut down to its leading Ritz vectors and goes on from there, which
    loses little.

    Source: Lanczos, 1950; Golub and Underwood, The block Lanczos method for computing eigenvalues,
    1977; the bound: Parlett, The Symmetric Eigenvalue Problem, 1998, section 4.5; Wu and Simon,
    Thick-restart Lanczos method for large symmetric eigenvalue problems, 2000.

    Args:
        operator: The operator, n x n.
        k: How many eigenvalues, 1 <= k <= n.
        which: "largest" (algebraic, in descending order), "smallest" (in ascending order) or
            "magnitude" (by absolute value, descending).
        tol: The relative residual to stop at.
        block: Vectors of a block, 1 to k. Default: k, but 3 at most. Give k where eigenvalues may
            be repeated more than three times.
        max_steps: The most Lanczos steps. `converged` says whether they were enough. Default: 100,
            or as many as make 100 k products. Never fewer than a basis of k vectors takes.
        max_basis: The most vectors in the basis, at least 3 k + 2 (or n). Default: what fits into 1
            GiB, but 4 k + 8 at least.
        max_seconds: Stop before the step that would take longer than this in all.
        vectors: Whether to return the vectors, shape (n, k).
        seed: Of the start vectors; the global random state is not touched.
        progress: Called with ("eigenvalues", steps done, max_steps).
        keep_interrupted: Whether an interrupt (Ctrl-C) returns what there is after a step, for one
            more product; otherwise it is raised.

    Raises:
        InputError: k, which, tol, block, max_steps, max_basis or max_seconds out of range; too
            little memory for the smallest basis.
    """
    n = operator.shape[0]
    if which not in _ORDERS:
        raise unknown("order of eigenvalues", which, _ORDERS)
    if not 1 <= k <= n:
        raise InputError(f"k is {k}: the operator has {n} eigenvalues, give 1 to {n}")
    block = min(k, WIDEST) if block is None else block
    if not 1 <= block <= k:
        raise InputError(f"block is {block}: give 1 to k = {k}")
    max_steps = math.ceil(100 * k / block) if max_steps is None else max_steps
    if max_steps < 1:
        raise InputError(f"max_steps is {max_steps}: give at least 1")
    if not tol > 0:
        raise InputError(f"tol is {tol}: give a number above 0, such as 1e-3")
    if max_seconds is not None and not max_seconds > 0:
        raise InputError(f"max_seconds is {max_seconds}: give a number above 0")
    if max_basis is not None and max_basis < min(n, 3 * k + 2):
        raise InputError(f"max_basis is {max_basis}: give at least {min(n, 3 * k + 2)} for k = {k}")
    meter = Meter(operator.device, operator.dtype, operator)
    row = n * operator.dtype.itemsize
    fitting = max(BASIS_BYTES // row, 4 * k + 8)
    if (free := free_bytes(operator.device)) is not None:
        # Half is for what a product takes.
        least = min(n, 3 * k + 2)
        fitting = max(least, min(fitting, free // 2 // row))
        if (asked := max_basis or least) * row > free:
            raise InputError(
                f"a basis of {asked} vectors needs {words(asked * row)} of memory on "
                f"{operator.device}, and {words(free)} are free: give fewer eigenvalues"
                + (" or a smaller max_basis" if max_basis else "")
            )
    # Three blocks more than are kept at a restart, where steps are so few that none comes.
    most = max(max_steps * block, 3 * k + 2)
    lanczos = Lanczos(operator, block, seed, min(n, max_basis or fitting, most))
    start, longest, steps, stopped = time.perf_counter(), 0.0, 0, "max_steps"
    try:
        while steps < max_steps or lanczos.size < k:
            before = time.perf_counter()
            over = max_seconds is not None and before - start + longest > max_seconds
            if over and lanczos.size >= k:
                stopped = "max_seconds"
                break
            lanczos.step(k, which)
            steps += 1
            values, _, bounds = lanczos.ritz(k, which)
            if progress is not None:
                progress("eigenvalues", steps, max_steps)
            if len(values) == k and lanczos.small(bounds, values, tol):
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
    values, coordinates, bounds = lanczos.ritz(k, which)
    ritz, residuals = lanczos.combine(coordinates), bounds.clamp(min=lanczos.floor)
    if k <= WIDEST or not lanczos.confirmed(ritz, values, residuals):
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
