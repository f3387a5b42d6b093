"""The trace of an operator from random probes."""

from __future__ import annotations

import time

from flatminima.errors import InputError, unknown
from flatminima.measure.cost import Meter
from flatminima.measure.memory import free_bytes
from flatminima.measure.operators import Operator
from flatminima.measure.probing import (
    Exact,
    Hutchinson,
    HutchPlusPlus,
    Probing,
    XTrace,
)
from flatminima.measure.results import Estimate, TraceEstimate
from flatminima.progress import Progress

LEAST = {"auto": 1, "hutchinson": 1, "hutch++": 6, "xtrace": 4}
"""The methods, and the fewest products each needs."""

FEWEST = 20
"""Products before an error is believed."""

SMALL = 2 * FEWEST
"""Dimensions up to which a relative error is asked of all unit vectors at once."""

SKETCHED = 12
"""Products from which on "auto" makes test vectors of them. Fewer than six vectors may not hold
what is large in the matrix, and then do not show it in their error either."""

XTRACE_BYTES = 2**31
"""The most memory that "auto" gives to XTrace."""


def hessian_trace(
    operator: Operator,
    *,
    method: str = "auto",
    probes: int = 100,
    rel_error: float | None = None,
    max_seconds: float | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    keep_interrupted: bool = True,
) -> TraceEstimate:
    r"""The trace, whole and by block, with the error of the probes and that of the data.

    Methods, all unbiased, at equal numbers of products:

    - "hutchinson": $\mathrm{Tr}\,H = E[z^\top H z]$ for random signs z (Rademacher), whose variance
      $2(\|H\|_F^2 - \sum_i H_{ii}^2)$ is the least among probes with independent entries. Best for
      flat spectra; no memory.
    - "hutch++": a third of the products find the large part of H, a third measure it exactly, a
      third probe the rest. `rel_error` can save only of the last third.
    - "xtrace": each test vector probes what the others leave of H. By far the best where a few
      eigenvalues stand out, as in trained networks. Memory of 2 `probes` vectors.
    - "auto": all n products, hence the exact trace, if n <= `probes`; else XTrace, unless there are
      fewer than 12 probes, or it needs more than 2 GiB or half of what is free, or its first 20
      products show that Hutchinson will do better. Where more test vectors stop paying, probes of
      one product each of what the found ones leave.

    The same products give each block's trace, so a layer costs nothing extra. `stderr` is that of
    the m estimates, $s/\sqrt m$; for XTrace $\sqrt 2\, s/\sqrt m$, since its estimates share their
    sketch and $s/\sqrt m$, the paper's, comes out 1.0 to 1.6 times too small in trials. For
    Hutch++ s is that of the last third, given the sketch. `data_stderr` is what other samples from
    the same source would change; see `BatchForms`.

    With `rel_error` it stops when stderr / |value| <= rel_error, looked at after every 10 probes
    and not before 20 products. Where n <= `probes` and there is no `max_seconds`, "auto" then makes
    all n products in the end: from the start if n is 40 at most, else once n/2 were not enough.
    Stopping at a lucky moment makes the error a little too small: for intervals that cover as often
    as they say, fix `probes`.

    Cost: `probes` HVPs, one gradient for 10 of them.

    Source: Hutchinson, A stochastic estimator of the trace of the influence matrix, 1989; Meyer,
    Musco, Musco, Woodruff, Hutch++, 2021, arXiv 2010.09649; Epperly, Tropp, Webber, XTrace, 2024,
    arXiv 2301.07825.

    Args:
        operator: The operator.
        method: "auto", "hutchinson", "hutch++" or "xtrace".
        probes: Products with a vector, or the most of them if `rel_error` or `max_seconds` is
            given.
        rel_error: The relative standard error to stop at.
        max_seconds: Stop before the block of probes that would take longer than this in all; the
            first block is always done.
        seed: Probe j depends on (seed, j) alone; the global random state is not touched.
        progress: Called with ("trace", products done, probes).
        keep_interrupted: Whether an interrupt (Ctrl-C) returns what there is, with `stopped`
            "interrupted", once two probes are done; otherwise it is raised.

    Raises:
        InputError: an unknown method; too few probes (1; 4 for XTrace, 6 for Hutch++); rel_error
            or max_seconds not above 0.
    """
    if method not in LEAST:
        raise unknown("trace method", method, LEAST)
    if probes < LEAST[method]:
        raise InputError(f"probes is {probes}: give at least {LEAST[method]} for {method!r}")
    for name, bound in (("rel_error", rel_error), ("max_seconds", max_seconds)):
        if bound is not None and not bound > 0:
            raise InputError(f"{name} is {bound}: give a number above 0, such as 0.05")
    meter = Meter(operator.device, operator.dtype, operator)
    timed = max_seconds is not None
    probing = _start(operator, method, probes, seed, timed=timed, rel_error=rel_error)
    exact_later = _exact_later(operator, method, probes, timed=timed, rel_error=rel_error)
    stopped, longest, start = "probes", 0.0, time.perf_counter()
    earlier: Probing | None = None
    try:
        while probing.left or exact_later:
            if not probing.left:
                earlier, exact_later = probing, False
                probing = Exact(operator, operator.shape[0], seed)
            before = time.perf_counter()
            over = max_seconds is not None and before - start + longest > max_seconds
            if over and probing.ready:
                stopped = "max_seconds"
                break
            probing = probing.round()
            longest = max(longest, time.perf_counter() - before)
            if progress is not None:
                progress("trace", probing.done, max(probes, probing.done))
            if rel_error is not None and probing.done >= FEWEST and probing.ready:
                value, stderr = probing.mean_and_stderr(probing.samples.sum(0))
                if stderr <= rel_error * abs(value):
                    stopped = "rel_error"
                    break
    except KeyboardInterrupt:
        if earlier is not None and not probing.ready:
            probing = earlier
        if not keep_interrupted or not probing.ready:
            raise
        stopped = "interrupted"
    else:
        if progress is not None:
            progress("trace", probing.done, probing.done)
    count, cost = probing.samples.shape[1], meter.read()
    whole = probing.mean_and_stderr(probing.samples.sum(0))
    how = f"{probing.name}; {operator.description}"
    blocks = {
        name: Estimate(*probing.mean_and_stderr(row), count, method=how, seed=seed, **cost)
        for name, row in zip(operator.blocks, probing.samples, strict=True)
    }
    return TraceEstimate(
        *whole,
        count,
        method=how,
        seed=seed,
        **cost,
        blocks=blocks,
        data_stderr=probing.data_stderr(),
        stopped=stopped,
    )


def _exact_later(
    operator: Operator, method: str, probes: int, *, timed: bool, rel_error: float | None
) -> bool:
    """Whether all unit vectors are to follow where probes do not reach the error asked for."""
    n = operator.shape[0]
    return method == "auto" and rel_error is not None and not timed and SMALL < n <= probes


def _start(
    operator: Operator,
    method: str,
    probes: int,
    seed: int,
    *,
    timed: bool,
    rel_error: float | None,
) -> Probing:
    n = operator.shape[0]
    # An exact trace says nothing before its end, and with an error asked for, less may be enough.
    least = FEWEST if timed else min(probes, SMALL) if rel_error is not None else probes
    if method == "hutchinson":
        return Hutchinson(operator, probes, seed)
    if method == "auto":
        if n <= least:
            return Exact(operator, n, seed)
        free = free_bytes(operator.device)
        most = XTRACE_BYTES if free is None else min(XTRACE_BYTES, free // 2)
        if probes < SKETCHED or 2 * probes * n * operator.dtype.itemsize > most:
            return Hutchinson(operator, probes, seed)
        later = _exact_later(operator, method, probes, timed=timed, rel_error=rel_error)
        budget = n // 2 if later else min(probes, n)
        return XTrace(operator, budget, seed, may_change=True, rel_error=rel_error)
    # Half the dimension in test vectors leaves nothing to probe.
    budget = min(probes, n)
    if budget < LEAST[method]:
        raise InputError(f"the operator has {n} dimensions, too few for {method!r}: give 'auto'")
    return (XTrace if method == "xtrace" else HutchPlusPlus)(operator, budget, seed)
