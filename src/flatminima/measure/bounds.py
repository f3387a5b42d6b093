"""What the flatness of a minimum says of the test loss: a PAC-Bayes bound, term by term."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from flatminima.errors import InputError, unknown
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.measure.cost import Meter
from flatminima.measure.hessian import Hessian
from flatminima.measure.results import Estimate, Result
from flatminima.measure.trace import hessian_trace
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Batch, Objective
from flatminima.perturb.shares import cut
from flatminima.progress import Progress

SIGMAS = tuple(10 ** (-5 + i / 8) for i in range(57))
"""From 1e-5 to 100: flat minima of small networks have theirs above 1. A sigma between two of them
would lower the middle terms by 4 % at most."""

BETAS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""1/beta is the factor on the training loss."""


@dataclass(frozen=True)
class PacBayesBound(Result):
    r"""A bound on the expected test loss; see `pac_bayes_bound` for the formula.

    Attributes:
        loss: The training loss, the mean over all samples.
        max_loss: C, the largest value that a loss takes.
        max_loss_given: Whether C was given; else it is the largest that was seen.
        trace: alpha, the largest trace of the Hessian.
        distance: r, the l2 distance of the weights from the reference.
        from_initialization: Whether the reference was given (fine-tuning form); else it is 0.
        samples: n.
        delta: The probability that the bound may fail.
        sigma: The noise of the prior and the posterior, the best of the grid.
        beta: The factor 1/beta on the training loss is 1 + epsilon; the best of the grid.
        candidates: K, how many (sigma, beta) were on the grid.
        over: Whether alpha is a maximum over "batches" or over "samples".
        edges: Which of "sigma" and "beta" is at an end of a grid of several: a grid that goes
            further may have a better bound.
    """

    loss: float
    max_loss: float
    max_loss_given: bool
    trace: Estimate
    distance: float
    from_initialization: bool
    samples: int
    delta: float
    sigma: float
    beta: float
    candidates: int
    over: str
    edges: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.loss < 0:
            raise InputError(
                f"the training loss is {self.loss:g}, and the bound is for losses of 0 to C: add "
                "a constant to the objective"
            )
        if self.loss > self.max_loss:
            raise InputError(
                f"max_loss is {self.max_loss:g} and the training loss {self.loss:g}: give the "
                "largest value that a loss can take"
            )

    def optimized(
        self, sigmas: Sequence[float] = SIGMAS, betas: Sequence[float] = BETAS
    ) -> PacBayesBound:
        """The best bound on a grid of sigma and beta, the choice paid for by the union bound."""
        _check_grid(sigmas, betas)
        grid = list(product(sigmas, betas))
        bounds = (replace(self, sigma=s, beta=b, candidates=len(grid)) for s, b in grid)
        best = min(bounds, key=lambda bound: bound.value)
        chosen = {"sigma": (best.sigma, sigmas), "beta": (best.beta, betas)}
        edges = (
            name
            for name, (value, tried) in chosen.items()
            if len(set(tried)) > 1 and value in (min(tried), max(tried))
        )
        return replace(best, edges=tuple(edges))

    @property
    def loss_term(self) -> float:
        """f(W) / beta."""
        return self.loss / self.beta

    @property
    def noise_term(self) -> float:
        """(1 - beta) / (2 beta) * alpha sigma^2: what noise adds to the training loss, net."""
        return (1 - self.beta) / (2 * self.beta) * max(self.trace.value, 0.0) * self.sigma**2

    @property
    def distance_term(self) -> float:
        """C r^2 / (4 beta (1 - beta) n sigma^2): the divergence of posterior and prior."""
        return self._rate * self.distance**2 / (2 * self.sigma**2)

    @property
    def confidence_term(self) -> float:
        """C ln(K / delta) / (2 beta (1 - beta) n): K choices at confidence 1 - delta."""
        return self._rate * math.log(self.candidates / self.delta)

    @property
    def value(self) -> float:
        """The bound, the sum of the four terms."""
        return self.loss_term + self.noise_term + self.distance_term + self.confidence_term

    @property
    def stderr(self) -> float:
        """What the standard error of the trace makes of it."""
        return (1 - self.beta) / (2 * self.beta) * self.trace.stderr * self.sigma**2

    @property
    def vacuous(self) -> bool:
        """Whether it says no more than that a loss is at most C."""
        return self.value >= self.max_loss

    @property
    def _rate(self) -> float:
        return self.max_loss / (2 * self.beta * (1 - self.beta) * self.samples)

    @property
    def estimates(self) -> tuple[str, ...]:
        """The terms that are measured at W on these samples, where the theorem has a maximum."""
        seen = () if self.max_loss_given else ("C: the largest loss of the samples seen",)
        return (
            *seen,
            f"alpha: the largest trace over the {self.over}, at W alone, by random probes",
            "left out are terms beyond second order in the noise, and what the traces over "
            "samples and population differ by",
        )

    def __str__(self) -> str:
        reference = "initialization" if self.from_initialization else "0"
        known = "given" if self.max_loss_given else "estimated"
        rows = [
            ("training loss / beta", self.loss_term, f"loss {self.loss:.4g}, beta {self.beta:g}"),
            ("noise", self.noise_term, f"alpha {self.trace}, sigma {self.sigma:.3g}"),
            ("distance", self.distance_term, f"r {self.distance:.4g} from {reference}"),
            (
                "confidence",
                self.confidence_term,
                f"delta {self.delta:g}, {self.candidates} choices of (sigma, beta)",
            ),
            ("bound", self.value, f"n {self.samples}, C {self.max_loss:.4g} ({known})"),
        ]
        lines = [f"{name:<20}  {value:<10.4g}  {note}" for name, value, note in rows]
        verdict = (
            f"vacuous: a loss of at most C = {self.max_loss:.4g} is known without it"
            if self.vacuous
            else f"not vacuous: the expected test loss is at most {self.value:.4g}, with "
            f"probability {1 - self.delta:g} over training sets, as far as the estimates hold"
        )
        for name in self.edges:
            lines.append(
                f"the best {name}, {getattr(self, name):.3g}, is at the end of its grid: a grid "
                f"of {name}s that goes further, fixed before, may give a better bound"
            )
        return "\n".join([*lines, verdict, "not certified: " + "; ".join(self.estimates)])

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON types, and the terms."""
        terms = ("loss_term", "noise_term", "distance_term", "confidence_term", "value")
        return {
            **super().to_dict(),
            "trace": self.trace.to_dict(),
            "terms": {name: getattr(self, name) for name in terms},
            "vacuous": self.vacuous,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The bound that `to_dict` wrote."""
        own = {key: value for key, value in data.items() if key not in ("terms", "vacuous")}
        edges = tuple(own.get("edges", ()))
        return cls(**{**own, "trace": Estimate.from_dict(own["trace"]), "edges": edges})


def pac_bayes_bound(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    reference: nn.Module | Mapping[str, Tensor] | None = None,
    max_loss: float | None = None,
    delta: float = 0.05,
    over: Literal["batches", "samples"] = "batches",
    traces: int | None = None,
    probes: int = 20,
    sigmas: Sequence[float] = SIGMAS,
    betas: Sequence[float] = BETAS,
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PacBayesBound:
    r"""A PAC-Bayes bound on the expected test loss L(W), from the Hessian's trace.

    With probability $1 - \delta$ over training sets of n samples, for losses in [0, C],

    $$L(W) \le \frac{f(W)}{\beta} + \frac{1 - \beta}{2 \beta}\, \alpha \sigma^2
    + \frac{C r^2}{4 \beta (1 - \beta) n \sigma^2}
    + \frac{C \ln(K / \delta)}{2 \beta (1 - \beta) n} + \mathrm{h.o.t.}$$

    It is the linear PAC-Bayes inequality for the prior $N(W_{ref}, \sigma^2 I)$ and the posterior
    $N(W, \sigma^2 I)$, the losses under noise expanded to second order; $r = \|W - W_{ref}\|_2$,
    and $\alpha$ bounds the trace of the Hessian of any sample's loss. sigma and beta are the best
    of a grid that was fixed before; the K choices on it are paid for by the union bound. With a
    free sigma the two middle terms would be $\frac{1}{\beta} \sqrt{C \alpha r^2 / 2n}$.

    Of this, f(W), r and n are exact. C (unless given) and alpha are maxima over the training set
    where the theorem has maxima over all samples, and alpha also over weights; see
    `PacBayesBound.estimates`. Traces of batch means are smaller than the largest of a sample:
    `over="samples"` is nearer to the theorem and costs n / batch size times as much.

    Cost: a gradient and `probes` HVPs of each batch (sample), where `traces` is given a forward
    pass of the others, and where `max_loss` is not, one of each sample by itself.

    Source: Zhang, Li, Ju, Noise Stability Optimization for Finding Flat Minima, 2024,
    arXiv 2306.08553, Theorem 2.1, with constants by this library's derivation; the inequality:
    McAllester, A PAC-Bayesian Tutorial with a Dropout Bound, 2013, arXiv 1307.2118.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: The whole training set: n is the number of samples here.
        reference: Weights known before training, a model or a state dict: the fine-tuning form.
            Default: 0.
        max_loss: C where it is known, such as 1 for a loss clipped at 1. Cross-entropy has none.
        delta: The probability that the bound may fail, in (0, 1).
        over: What alpha is a maximum over.
        traces: Measure the traces of the first so many batches (samples) only; default: of all.
        probes: Probes of each trace. The largest of noisy values is too large rather than small.
        sigmas: The grid of sigma, which must not depend on the samples.
        betas: The grid of beta, in (0, 1), likewise.
        params: Which parameters were trained: tensors, or names with wildcards ("encoder.*");
            default: all that require a gradient.
        seed: Of the probes; the global random state is not touched.
        progress: Called with ("bound", traces done, traces done or to do).

    Raises:
        InputError: an argument out of its range; a negative loss, or one above max_loss; a
            reference that lacks a parameter or has another shape; as `hessian_trace`.
    """
    if over not in ("batches", "samples"):
        raise unknown("over", over, ("batches", "samples"))
    if not 0 < delta < 1:
        raise InputError(f"delta is {delta}: give a probability between 0 and 1, such as 0.05")
    if traces is not None and traces < 1:
        raise InputError(f"traces is {traces}: give at least 1")
    _check_grid(sigmas, betas)
    named = free_parameters(model, params)
    first = next(iter(named.values()))
    moved = displacements(named, reference)
    distance = math.sqrt(sum(v.double().square().sum().item() for v in moved))
    meter = Meter(first.device, first.dtype)
    losses, most = MeanLoss(), 0.0
    largest: Estimate | None = None
    gradients = hvps = 0
    for done, (piece, count) in enumerate(pieces(batches, over, first.device), 1):
        if traces is None or done <= traces:
            operator = Hessian(model, objective, [piece], params=named.values())
            trace = hessian_trace(operator, probes=probes, seed=seed)
            gradients, hvps = gradients + operator.gradients, hvps + operator.hvps
            assert operator.loss is not None
            loss = torch.tensor(operator.loss, dtype=torch.float64)
            if largest is None or trace.value > largest.value:
                largest = trace
            if progress is not None:
                progress("bound", done, max(done, traces or 0))
        else:
            with untouched(model, objective, first.device), torch.no_grad():
                loss = scalar_loss(model, objective, piece).cpu().double()
        losses.add(loss, count)
        if max_loss is None:
            most = max(most, largest_loss(model, objective, piece, count))
    assert largest is not None
    cost = meter.read()
    cost["gradients"], cost["hvps"] = gradients, hvps
    return PacBayesBound(
        loss=losses.value().item(),
        max_loss=most if max_loss is None else max_loss,
        max_loss_given=max_loss is not None,
        trace=Estimate(
            largest.value,
            largest.stderr,
            largest.samples,
            method=f"{largest.method}, largest over {over}",
            seed=seed,
            **cost,
        ),
        distance=distance,
        from_initialization=reference is not None,
        samples=losses.samples,
        delta=delta,
        sigma=sigmas[0],
        beta=betas[0],
        candidates=1,
        over=over,
        method="linear PAC-Bayes, second order in the noise",
        seed=seed,
        **cost,
    ).optimized(sigmas, betas)


def displacements(
    named: Mapping[str, Tensor], reference: nn.Module | Mapping[str, Tensor] | None
) -> list[Tensor]:
    """W - W_ref for each parameter.

    Raises:
        InputError: the reference lacks a parameter or has another shape.
    """
    if reference is None:
        return [weight.detach() for weight in named.values()]
    known = reference.state_dict() if isinstance(reference, nn.Module) else reference
    moved = []
    for name, weight in named.items():
        if name not in known:
            raise InputError(
                f"reference has no {name!r}: give a state dict of this architecture, with zeros "
                "for layers that are new"
            )
        if known[name].shape != weight.shape:
            raise InputError(
                f"reference has {name!r} of shape {tuple(known[name].shape)}, the model of "
                f"{tuple(weight.shape)}: give a state dict of this architecture"
            )
        moved.append(weight.detach() - known[name].detach().to(weight))
    return moved


def pieces(
    batches: Batches, over: Literal["batches", "samples"], device: torch.device
) -> Iterator[tuple[Batch, int]]:
    """Each batch, or each sample as a batch, with its number of samples."""
    for batch, count in weighted(batches, device):
        if over == "batches":
            yield batch, count
        else:
            for i in range(count):
                yield cut(batch, i, i + 1, count), 1


def largest_loss(model: nn.Module, objective: Objective, batch: Batch, count: int) -> float:
    """The largest loss of a sample by itself."""
    first = next(model.parameters())
    with untouched(model, objective, first.device), torch.no_grad():
        singles = (cut(batch, i, i + 1, count) for i in range(count))
        return float(torch.stack([scalar_loss(model, objective, s) for s in singles]).max())


def _check_grid(sigmas: Sequence[float], betas: Sequence[float]) -> None:
    if not sigmas or not betas:
        raise InputError("the grid of sigmas and betas is empty: give at least one of each")
    for sigma in sigmas:
        if not (math.isfinite(sigma) and sigma > 0):
            raise InputError(f"sigmas has {sigma}: give finite numbers above 0, such as 0.01")
    for beta in betas:
        if not 0 < beta < 1:
            raise InputError(f"betas has {beta}: give numbers between 0 and 1, such as 0.9")
