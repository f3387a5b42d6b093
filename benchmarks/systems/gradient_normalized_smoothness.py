"""Gradient-normalized smoothness against gradient descent, L-BFGS and Adam.

Problems solved to a stated loss from 10 seeds, in iterations, gradients (calls of the
closure), products with the curvature, and seconds on one thread.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from flatminima import GNS, EmpiricalFisher, GaussNewton, Hessian, Supervised
from flatminima.measure import Dense, Shift, Sum
from flatminima.study import mean_ci, paired
from flatminima.training.data import DataSpec, load
from flatminima.training.models import build

SEEDS = range(10)
TUNING_SEED = 1000
RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FLOAT = torch.float64

Operator = Any
Curvature = Callable[[], Operator]


@dataclass
class Problem:
    """One start on one problem.

    Attributes:
        parameters: To move.
        loss: The function, of the parameters as they are.
        curvatures: For each variant of GNS, its curvature and its options.
        target: The loss to reach.
        most: Gradients at most for each method.
        score: Anything else to say of the solution, larger is better.
    """

    parameters: list[nn.Parameter]
    loss: Callable[[], Tensor]
    curvatures: dict[str, tuple[Curvature, dict[str, Any]]]
    target: float
    most: int
    score: Callable[[], float] | None = None


class Reached(Exception):
    """The target is reached, or the gradients are used up."""


class Counted:
    """The closure of a problem, with its books; stops a method that does not stop by itself."""

    def __init__(self, problem: Problem, *, stop: bool = True) -> None:
        self.problem, self.stop = problem, stop
        self.gradients, self.loss = 0, math.inf

    def __call__(self) -> Tensor:
        for p in self.problem.parameters:
            p.grad = None
        loss = self.problem.loss()
        loss.backward()
        self.gradients += 1
        self.loss = loss.item()
        if self.stop and (self.loss < self.problem.target or self.gradients >= self.problem.most):
            raise Reached
        return loss.detach()


def result(
    problem: Problem, start: float, iterations: int, closure: Counted, products: int
) -> dict[str, Any]:
    seconds = time.perf_counter() - start
    with torch.no_grad():
        loss = problem.loss().item()
    found = {
        "reached": loss < problem.target,
        "loss": loss,
        "iterations": iterations,
        "gradients": closure.gradients,
        "products": products,
        "seconds": seconds,
    }
    if problem.score is not None:
        found["score"] = problem.score()
    return found


def gns(problem: Problem, name: str) -> dict[str, Any]:
    """One call of `step` with as many iterations as it takes, watched at the start of each."""
    curvature, options = problem.curvatures[name]
    closure, made = Counted(problem, stop=False), []

    def watched() -> Operator:
        if closure.loss < problem.target or closure.gradients >= problem.most:
            raise Reached
        made.append(curvature())
        return made[-1]

    optimizer = GNS(problem.parameters, watched, tol=0.0, max_iter=10**6, **options)
    start = time.perf_counter()
    with contextlib.suppress(Reached):
        optimizer.step(closure)
    return result(problem, start, len(made), closure, sum(operator.hvps for operator in made))


def gradient_descent(problem: Problem) -> dict[str, Any]:
    """Armijo's condition with the constant 1/2, by halving; the length is doubled after a step."""
    closure, length, iterations = Counted(problem), 1.0, 0
    start = time.perf_counter()
    try:
        loss = closure().item()
        while True:
            gradients = [p.grad.clone() for p in problem.parameters]
            square = sum(g.square().sum().item() for g in gradients)
            before = [p.detach().clone() for p in problem.parameters]
            while True:
                with torch.no_grad():
                    for p, old, g in zip(problem.parameters, before, gradients, strict=True):
                        p.copy_(old - length * g)
                new = closure().item()
                if new <= loss - length / 2 * square or length < 1e-20:
                    break
                length /= 2
            loss, length, iterations = new, 2 * length, iterations + 1
    except Reached:
        iterations += 1
    return result(problem, start, iterations, closure, 0)


def lbfgs(problem: Problem) -> dict[str, Any]:
    """torch's, strong Wolfe line search; its iterations are those begun."""
    closure = Counted(problem)
    optimizer = torch.optim.LBFGS(
        problem.parameters,
        max_iter=10**6,
        max_eval=10**6,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    start = time.perf_counter()
    with contextlib.suppress(Reached):
        optimizer.step(closure)
    iterations = optimizer.state[problem.parameters[0]].get("n_iter", 0)
    return result(problem, start, iterations, closure, 0)


def adam(problem: Problem, rate: float) -> dict[str, Any]:
    closure = Counted(problem)
    optimizer = torch.optim.Adam(problem.parameters, lr=rate)
    start = time.perf_counter()
    with contextlib.suppress(Reached):
        while True:
            optimizer.step(closure)
    return result(problem, start, closure.gradients, closure, 0)


def rosenbrock(seed: int | None) -> Problem:
    """Seed None: from (-2, 2), as in the paper; else from a uniform point of [-2, 2]^2."""
    generator = torch.Generator().manual_seed(seed or 0)
    begin = torch.tensor([-2.0, 2.0], dtype=FLOAT)
    if seed is not None:
        begin = 4 * torch.rand(2, dtype=FLOAT, generator=generator) - 2
    x = nn.Parameter(begin)

    def residuals(x: Tensor) -> Tensor:
        return torch.stack([1 - x[0], 10 * (x[1] - x[0] ** 2)])

    def f(x: Tensor) -> Tensor:
        return residuals(x).square().sum()

    def hessian() -> Operator:
        return Dense(torch.autograd.functional.hessian(f, x.detach()))

    def gauss_newton() -> Operator:
        jacobian = torch.autograd.functional.jacobian(residuals, x.detach())
        return Dense(2 * jacobian.T @ jacobian)

    curvatures = {"Hessian": (hessian, {}), "Gauss-Newton": (gauss_newton, {})}
    return Problem([x], lambda: f(x), curvatures, 1e-8, 20_000)


def log_sum_exp(seed: int, n: int = 200, *, changed: bool = False) -> Problem:
    """Entries uniform in [-1, 1], recentred so that the minimum is at 0; from ones.

    Changed: in the coordinates y = L' x of the metric LL', which serves all methods alike.
    """
    generator = torch.Generator().manual_seed(seed)
    a = 2 * torch.rand(n, n, dtype=FLOAT, generator=generator) - 1
    b = 2 * torch.rand(n, dtype=FLOAT, generator=generator) - 1
    a = a - a.T @ torch.softmax(-b, 0)
    begin = torch.ones(n, dtype=FLOAT)
    # A is singular once it is recentred: f is constant along what it sends to 0.
    metric = a.T @ a + 1e-6 * torch.eye(n, dtype=FLOAT)
    if changed:
        factor = torch.linalg.cholesky(metric)
        begin = factor.T @ begin
        a = torch.linalg.solve_triangular(factor, a.T, upper=False).T.contiguous()
    x = nn.Parameter(begin)

    def weighted() -> Tensor:
        return a.T @ (torch.softmax(a @ x.detach() - b, 0)[:, None] * a)

    def hessian() -> Operator:
        gradient = a.T @ torch.softmax(a @ x.detach() - b, 0)
        return Dense(weighted() - torch.outer(gradient, gradient))

    given = {} if changed else {"metric": metric}
    curvatures = {
        "Hessian": (hessian, given),
        "Hessian, eigenvectors": (hessian, {**given, "products": n}),
        "weighted Gauss-Newton": (lambda: Dense(weighted()), given),
    }
    if not changed:
        curvatures["Hessian, B = I"] = (hessian, {})
    best = torch.logsumexp(-b, 0).item()
    return Problem([x], lambda: torch.logsumexp(a @ x - b, 0), curvatures, best + 1e-8, 2000)


def penalized(model: nn.Module, weight: float) -> Callable[[nn.Module, Any], Tensor]:
    def objective(model: nn.Module, batch: Any) -> Tensor:
        squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return cross_entropy(model(batch[0]), batch[1]) + weight * squares

    return objective


def linear_curvatures(
    model: nn.Module, batch: Any, weight: float
) -> dict[str, tuple[Curvature, dict[str, Any]]]:
    """For a linear classifier, whose Gauss-Newton matrix is its Hessian."""
    likelihood = Supervised(cross_entropy)

    def gauss_newton() -> Operator:
        return Shift(GaussNewton(model, likelihood, [batch]), 2 * weight)

    def fisher() -> Operator:
        return Shift(EmpiricalFisher(model, likelihood, [batch]), 2 * weight)

    def hessian() -> Operator:
        return Hessian(model, penalized(model, weight), [batch])

    return {
        "Hessian": (hessian, {}),
        "Gauss-Newton": (gauss_newton, {}),
        "Gauss-Newton, rtol 0.01": (gauss_newton, {"rtol": 0.01}),
        "empirical Fisher": (fisher, {}),
        "Gauss-Newton, low-rank": (gauss_newton, {"form": "low-rank"}),
        "Gauss-Newton, diagonal": (gauss_newton, {"form": "diagonal"}),
    }


def linear_problem(
    x: Tensor,
    y: Tensor,
    test: tuple[Tensor, Tensor],
    weight: float,
    gap: float,
    most: int,
    only: tuple[str, ...] | None = None,
) -> Problem:
    """A linear classifier from 0."""
    model = nn.Linear(x.shape[1], int(y.max()) + 1, dtype=FLOAT)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    objective, batch = penalized(model, weight), (x, y)
    curvatures = linear_curvatures(model, batch, weight)
    curvatures = {k: v for k, v in curvatures.items() if only is None or k in only}

    def accuracy() -> float:
        with torch.no_grad():
            return (model(test[0]).argmax(1) == test[1]).double().mean().item()

    problem = Problem(
        list(model.parameters()), lambda: objective(model, batch), curvatures, -math.inf, 60
    )
    # The best loss, by the method itself from the same start, until the gradient is rounding.
    curvature = linear_curvatures(model, batch, weight)["Gauss-Newton"][0]
    exact = GNS(model.parameters(), curvature, rtol=1e-3, tol=1e-9, max_iter=60)
    exact.step(Counted(problem, stop=False))
    best = exact.last.loss
    with torch.no_grad():
        model.weight.zero_()
        model.bias.zero_()
    problem.target, problem.most, problem.score = best + gap, most, accuracy
    return problem


def breast_cancer(seed: int) -> Problem:
    """A random 80 % of the 569 patients, standardised; the mean logistic loss + 5e-4 ||W||^2."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    x, y = torch.tensor(data.data), torch.tensor(data.target)
    x = (x - x.mean(0)) / x.std(0)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = int(0.8 * len(x))
    train, test = order[:cut], order[cut:]
    return linear_problem(x[train], y[train], (x[test], y[test]), 5e-4, 1e-8, 3000)


HEAD_TEXTS = 1000


def features() -> tuple[Tensor, Tensor, float]:
    """MiniLM's pooled features of docstrings, their packages, and the seconds that took."""
    data = load(DataSpec(data="pydocs"), 0)
    torch.manual_seed(0)
    built = build("minilm", data)
    texts, labels = list(data.train.inputs), torch.as_tensor(data.train.targets)
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:HEAD_TEXTS]
    start, found = time.perf_counter(), []
    body = built.model.base_model.eval()
    for i in range(0, len(order), 50):
        chosen = [str(texts[j]) for j in order[i : i + 50]]
        tokens = built.encoding.tokenizer(
            chosen, truncation=True, max_length=64, padding=True, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = body(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        found.append((hidden * mask).sum(1) / mask.sum(1))
    x = torch.cat(found).double()
    seconds = time.perf_counter() - start
    return (x - x.mean(0)) / x.std(0), labels[order].long(), seconds


def head(x: Tensor, y: Tensor, seed: int) -> Problem:
    """A linear head of 3850 weights on 800 of the texts; the cross-entropy + 1e-3 ||W||^2."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    train, test = order[:800], order[800:]
    kept = ("Gauss-Newton", "Gauss-Newton, rtol 0.01", "empirical Fisher")
    return linear_problem(x[train], y[train], (x[test], y[test]), 1e-3, 1e-6, 1500, kept)


def tanh_network(seed: int) -> Problem:
    """10-8-1 on diabetes, standardised, squared error + 1e-3 ||W||^2; no loss to reach."""
    from sklearn.datasets import load_diabetes

    data = load_diabetes()
    x, y = torch.tensor(data.data), torch.tensor(data.target)[:, None]
    x, y = (x - x.mean(0)) / x.std(0), (y - y.mean()) / y.std()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    half = Supervised(mse_loss)

    def loss() -> Tensor:
        squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return mse_loss(model(x), y) / 2 + 1e-3 / 2 * squares

    def halved(kind: Any) -> Curvature:
        # Half the squared error has half its Gauss-Newton matrix, and a quarter of its Fisher.
        weight = 0.25 if kind is EmpiricalFisher else 0.5
        return lambda: Shift(Sum([kind(model, half, [(x, y)])], [weight]), 1e-3)

    curvatures = {
        "Hessian": (halved(Hessian), {"products": 97}),
        "Gauss-Newton": (halved(GaussNewton), {"products": 97}),
        "Gauss-Newton, Krylov": (halved(GaussNewton), {"products": 20}),
        "empirical Fisher": (halved(EmpiricalFisher), {"products": 97}),
    }
    return Problem(list(model.parameters()), loss, curvatures, -math.inf, 10**9)


def million(seed: int) -> Problem:
    """64-950-950-10, tanh, 974 710 weights, on 300 digits in float32, to a loss of 0.01."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(seed))[:300]
    batch = torch.tensor(data.data).float()[order] / 16, torch.tensor(data.target)[order]
    torch.manual_seed(seed)
    layers = nn.Linear(64, 950), nn.Tanh(), nn.Linear(950, 950), nn.Tanh(), nn.Linear(950, 10)
    model, objective = nn.Sequential(*layers), Supervised()
    curvatures = {
        "Gauss-Newton": (lambda: GaussNewton(model, objective, [batch]), {"products": 20})
    }
    parameters = list(model.parameters())
    return Problem(parameters, lambda: objective(model, batch), curvatures, 0.01, 400)


Make = Callable[[int], Problem]


def contest(make: Make, seeds: Any = SEEDS) -> dict[str, Any]:
    """All methods on all seeds; Adam at the rate that does best on another seed."""
    trials = {rate: adam(make(TUNING_SEED), rate) for rate in RATES}
    rate = min(RATES, key=lambda r: (not trials[r]["reached"], trials[r]["gradients"]))
    if not trials[rate]["reached"]:
        rate = min(RATES, key=lambda r: trials[r]["loss"])
    methods: dict[str, Callable[[Problem], dict[str, Any]]] = {}
    for name in make(0).curvatures:
        methods[f"GNS, {name}"] = lambda problem, name=name: gns(problem, name)
    methods["gradient descent, backtracking"] = gradient_descent
    methods["L-BFGS, strong Wolfe"] = lbfgs
    methods[f"Adam, lr {rate:g}"] = lambda problem: adam(problem, rate)
    runs = {name: [method(make(seed)) for seed in seeds] for name, method in methods.items()}
    return {name: summary(found, runs["L-BFGS, strong Wolfe"]) for name, found in runs.items()}


def summary(runs: list[dict[str, Any]], others: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the runs that reached the target, how many did, and the seconds of each."""
    good = [run for run in runs if run["reached"]]
    found: dict[str, Any] = {"runs": len(runs), "reached": len(good)}
    found["loss"] = mean_ci([run["loss"] for run in runs]).to_dict()
    found["seconds_each"] = [run["seconds"] for run in runs]
    for key in ("iterations", "gradients", "products", "seconds", "score"):
        if good and key in good[0]:
            found[key] = mean_ci([run[key] for run in good]).to_dict()
    if runs is not others and len(good) == len(runs) and all(r["reached"] for r in others):
        times = [dict(enumerate(r["seconds"] for r in both)) for both in (runs, others)]
        found["seconds_over_lbfgs"] = paired(*times).to_dict()
    return found


def diabetes() -> dict[str, Any]:
    """The loss after 20 iterations of GNS, and of the others at the same and at more gradients."""
    found: dict[str, list[dict[str, Any]]] = {}
    rates = {r: _after(tanh_network(TUNING_SEED), 100, r)["loss"] for r in RATES}
    rate = min(rates, key=lambda r: rates[r])
    for seed in SEEDS:
        for name in tanh_network(seed).curvatures:
            problem = tanh_network(seed)
            curvature, options = problem.curvatures[name]
            closure, start = Counted(problem), time.perf_counter()
            optimizer = GNS(problem.parameters, curvature, max_iter=20, tol=0.0, **options)
            optimizer.step(closure)
            last = optimizer.last
            run = result(problem, start, last.iterations, closure, last.products)
            found.setdefault(f"GNS, {name}", []).append(run)
        for most in (40, 1000):
            problem = tanh_network(seed)
            problem.most = most
            for name, method in (("gradient descent", gradient_descent), ("L-BFGS", lbfgs)):
                problem = tanh_network(seed)
                problem.most = most
                found.setdefault(f"{name}, {most} gradients", []).append(method(problem))
            run = _after(tanh_network(seed), most, rate)
            found.setdefault(f"Adam, lr {rate:g}, {most} gradients", []).append(run)
    keys = ("loss", "iterations", "gradients", "products", "seconds")
    return {
        name: {key: mean_ci([run[key] for run in runs]).to_dict() for key in keys}
        for name, runs in found.items()
    }


def _after(problem: Problem, most: int, rate: float) -> dict[str, Any]:
    problem.most = most
    return adam(problem, rate)


def inside_the_model(texts: int = 24) -> dict[str, Any]:
    """The head where it is, in MiniLM with a frozen body: one iteration, and what it took."""
    data = load(DataSpec(data="pydocs"), 0)
    torch.manual_seed(0)
    built = build("minilm", data)
    model = built.model.eval().requires_grad_(False)
    model.classifier.requires_grad_(True)
    tokens = built.encoding.tokenizer(
        [str(t) for t in data.train.inputs[:texts]],
        truncation=True,
        max_length=64,
        padding=True,
        return_tensors="pt",
    )
    batch = {**tokens, "labels": torch.as_tensor(data.train.targets[:texts]).long()}
    objective = Supervised(cross_entropy)
    body = torch.cat([p.reshape(-1) for p in model.parameters() if not p.requires_grad])
    optimizer = GNS(model.named_parameters(), lambda: GaussNewton(model, objective, [batch]))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(model, batch)
        loss.backward()
        return loss

    start = time.perf_counter()
    before = optimizer.step(closure).item()
    seconds, last = time.perf_counter() - start, optimizer.last
    after = torch.cat([p.reshape(-1) for p in model.parameters() if not p.requires_grad])
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "free": sum(p.numel() for p in model.classifier.parameters()),
        "texts": texts,
        "loss_before": before,
        "loss_after": last.loss,
        "products": last.products,
        "gradients": last.gradients,
        "seconds": seconds,
        "body_unchanged": torch.equal(body, after),
    }


def run() -> dict[str, Any]:
    """All problems."""
    torch.set_num_threads(1)
    x, y, seconds = features()
    return {
        "rosenbrock_paper": contest(lambda seed: rosenbrock(None), range(1)),
        "rosenbrock": contest(rosenbrock),
        "log_sum_exp": contest(log_sum_exp),
        "log_sum_exp_changed": contest(lambda seed: log_sum_exp(seed, changed=True)),
        "breast_cancer": contest(breast_cancer),
        "head": contest(lambda seed: head(x, y, seed)),
        "head_feature_seconds": seconds,
        "inside_the_model": inside_the_model(),
        "diabetes": diabetes(),
        "million": contest(million),
    }


TITLES = {
    "rosenbrock_paper": "Rosenbrock from (-2, 2), to 1e-8, one run",
    "rosenbrock": "Rosenbrock from 10 random starts in [-2, 2]^2, to 1e-8",
    "log_sum_exp": "Log-sum-exp, n = m = 200, to a gap of 1e-8; B = A'A for GNS only",
    "log_sum_exp_changed": "The same in the coordinates of B, for all methods",
    "breast_cancer": "Logistic regression on breast cancer, 455 of 569 patients, to a gap of 1e-8",
    "head": "A linear head on MiniLM's features of docstrings, 3850 weights, to a gap of 1e-6",
    "million": "A network of 974 710 weights on 300 digits, float32, to a loss of 0.01",
}
MORE = {"head": "test accuracy", "breast_cancer": "test accuracy"}


def table(found: dict[str, Any]) -> str:
    """Markdown of all that was found."""
    parts = [_contest(TITLES[key], found[key], MORE.get(key)) for key in TITLES]
    inside = found["inside_the_model"]
    parts.insert(
        6,
        f"The same head inside the model ({inside['parameters']:,} weights, "
        f"{inside['free']:,} of them free; {inside['texts']} texts): one iteration took the loss "
        f"from {inside['loss_before']:.3f} to {inside['loss_after']:.3f} with "
        f"{inside['products']} product{'s' * (inside['products'] != 1)} and "
        f"{inside['gradients']} gradients in "
        f"{inside['seconds']:.1f} s, and the body "
        f"{'is the same bit for bit' if inside['body_unchanged'] else 'CHANGED'}. "
        f"(The features above took {found['head_feature_seconds']:.0f} s, once for all methods.)",
    )
    rows = ["| method | loss | gradients | products | seconds |", "|:--|--:|--:|--:|--:|"]
    for name, entry in found["diabetes"].items():
        cells = [_cell(entry[key]) for key in ("loss", "gradients", "products", "seconds")]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    title = "**Diabetes, a 10-8-1 tanh network: the loss after 20 iterations of GNS, 10 seeds**"
    return "\n\n".join([*parts, title, "\n".join(rows)])


def _contest(title: str, found: dict[str, Any], score: str | None) -> str:
    keys = ["iterations", "gradients", "products", "seconds"]
    head = ["method", "reached", *keys, *([score] if score else []), "seconds over L-BFGS"]
    rows = [f"| {' | '.join(head)} |", f"|:--|{'--:|' * (len(head) - 1)}"]
    for name, entry in found.items():
        cells = [f"{entry['reached']} of {entry['runs']}"]
        cells += [_cell(entry.get(key)) for key in [*keys, *(["score"] if score else [])]]
        over = entry.get("seconds_over_lbfgs")
        if over is None or over["t_interval"] is None:
            cells.append("")
        else:
            low, high = over["t_interval"]
            cells.append(f"{over['difference']:+.2g} [{low:+.2g}, {high:+.2g}]")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return f"**{title}**\n\n" + "\n".join(rows)


def _cell(mean: dict[str, Any] | None) -> str:
    if mean is None:
        return "-"
    value, text = mean["mean"], f"{mean['mean']:.3g}"
    if value >= 100:
        text = f"{value:.0f}"
    if mean["interval"] is not None and mean["interval"][0] != mean["interval"][1]:
        half = (mean["interval"][1] - mean["interval"][0]) / 2
        text += f" ± {half:.0f}" if half >= 10 else f" ± {half:.2g}"
    return text
