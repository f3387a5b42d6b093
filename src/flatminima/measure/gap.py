"""How much the loss rises when the weights are shaken."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence, Sized

import torch
from torch import Tensor, nn

from flatminima.errors import InputError
from flatminima.measure.batches import Batches, MeanLoss, scalar_loss, weighted
from flatminima.measure.cost import Meter
from flatminima.measure.results import Estimate, mean_and_stderr
from flatminima.measure.untouched import free_parameters, untouched
from flatminima.objectives import Objective
from flatminima.perturb.noise import Noise, Stream, tensor_ids
from flatminima.progress import Progress


def perturbation_gap(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    *,
    sigma: float,
    draws: int = 50,
    two_point: bool = True,
    noise: str = "normal",
    params: Iterable[Tensor] | Iterable[str] | str | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Estimate:
    r"""The perturbation gap F(W) - f(W), with F(W) = E[f(W + U)] and U = sigma z.

    Two-point: the mean over draws of $\frac12 [f(W+U) + f(W-U)] - f(W)$, where all terms odd in U
    cancel: $\frac{\sigma^2}{2} \mathrm{Tr}\,H + O(\sigma^4)$. For a quadratic and normal noise a
    draw's variance is $\frac{\sigma^4}{2} \|H\|_F^2$; one-point adds
    $\sigma^2 \|\nabla f\|^2$, which at small sigma swamps the rest. At kinks (ReLU) F feels
    curvature that the Hessian of autograd does not have, so the two differ there at every sigma.

    Cost: 2 draws + 1 forward passes over each batch (draws + 1 one-point), no gradients, two
    weight-sized buffers. The batches are read once: the same noise is drawn again for each batch.
    In float32 the difference of losses is good to about 1e-7 f(W).

    The model runs in eval mode and is left as it was, the weights bit for bit, also when the
    objective raises.

    Source: Zhang, Li, Ju, Noise Stability Optimization for Finding Flat Minima, 2024,
    arXiv 2306.08553.

    Args:
        model: The model, its parameters float32 or float64, on one device.
        objective: `(model, batch) -> scalar`, the mean over the batch's samples.
        batches: A list or a DataLoader; each batch counts as often as it has samples.
        sigma: The standard deviation of each weight's displacement.
        draws: How many U.
        two_point: Whether to pair +U with -U.
        noise: The distribution of z: "normal", "laplace", "uniform", "rademacher", "binomial".
        params: Which parameters move: tensors, or names with wildcards ("encoder.*"); default:
            all that require a gradient.
        seed: Of the noise; the global random state is not touched.
        progress: Called with ("gap", batches done, batches) after each batch.

    Raises:
        InputError: sigma negative or not finite; draws < 1; an unknown distribution; bad
            parameters, batches or loss.
    """
    if not (math.isfinite(sigma) and sigma >= 0):
        raise InputError(f"sigma is {sigma}: give a finite number, 0 or above, such as 0.01")
    if draws < 1:
        raise InputError(f"draws is {draws}: give at least 1")
    distribution = Noise.named(noise)
    named = free_parameters(model, params)
    device = next(iter(named.values())).device
    meter = Meter(device, next(iter(named.values())).dtype)
    losses = MeanLoss("mend the data or the model, or take a smaller sigma")
    total = len(batches) if isinstance(batches, Sized) else 0
    with untouched(model, objective, device), torch.no_grad(), Shaken(named, seed) as weights:
        for done, (batch, count) in enumerate(weighted(batches, device), 1):
            places = weights.visit(sigma, distribution, draws, two_point)
            row = [scalar_loss(model, objective, batch) for _ in places]
            losses.add(torch.stack(row), count)
            if progress is not None:
                progress("gap", done, max(done, total))
    means = losses.value()
    gaps = means[1:].reshape(draws, -1).mean(1) - means[0]
    sides = "two-point" if two_point else "one-point"
    return Estimate(
        *mean_and_stderr(gaps),
        draws,
        method=f"{sides} {noise} noise, sigma {sigma:g}",
        seed=seed,
        **meter.read(),
    )


class Shaken:
    """Weights that can be moved, and are back bit for bit on leaving the context."""

    def __init__(self, named: dict[str, Tensor], seed: int) -> None:
        self._weights = list(named.values())
        self._ids = tensor_ids(list(named))
        self._stream = Stream(seed)

    def __enter__(self) -> Shaken:
        self._home = [weight.clone() for weight in self._weights]
        return self

    def __exit__(self, *_: object) -> None:
        torch._foreach_copy_(self._weights, self._home)

    @property
    def home(self) -> Sequence[Tensor]:
        """W, not to be written to."""
        return self._home

    def move(self, offsets: Iterable[Tensor]) -> None:
        """Go to W + offset."""
        for weight, home, offset in zip(self._weights, self._home, offsets, strict=True):
            torch.add(home, offset, out=weight)

    def draw(self, number: int) -> list[Tensor]:
        """Normal z of the weights' shapes; depends on seed, number and parameters' names alone."""
        normal, drawn = Noise.named("normal"), []
        for home, key in zip(self._home, self._ids, strict=True):
            z = torch.empty_like(home, memory_format=torch.contiguous_format)
            drawn.append(normal.sample(z, self._stream.generator(home.device, key, number)))
        return drawn

    def visit(self, sigma: float, noise: Noise, draws: int, two_point: bool) -> Iterator[None]:
        """Yields at W, then at W + U (and W - U) for each draw.

        U depends on the seed, the draw and the parameter's name alone.
        """
        torch._foreach_copy_(self._weights, self._home)
        yield
        for draw in range(draws):
            for weight, home, key in zip(self._weights, self._home, self._ids, strict=True):
                z = torch.empty_like(home, memory_format=torch.contiguous_format)
                noise.sample(z, self._stream.generator(home.device, key, draw))
                weight.copy_(home).add_(z, alpha=sigma)
            yield
            if two_point:
                torch._foreach_neg_(self._weights)
                torch._foreach_add_(self._weights, self._home, alpha=2)
                yield
