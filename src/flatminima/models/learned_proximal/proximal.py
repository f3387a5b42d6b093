"""What every learned proximal network is: the gradient of a convex potential, and so a prox."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flatminima.arguments import between, tensor, whole
from flatminima.errors import InputError
from flatminima.models.learned_proximal.inversion import Prior, invert

NOT_CONVEX = """{name} has {count} negative weights where convexity needs none, so it is no \
proximal operator: call clip_() after every step of the optimizer"""


class LearnedProximal(nn.Module):
    r"""A map $f = \nabla \psi$ with $\psi$ convex: exactly the proximal operator of some R.

    A continuous map is the proximal operator of a function, convex or not, if and only if it is
    the gradient of a convex one (Gribonval, Nikolova, 2020, A characterization of proximity
    operators). The function is known where f has been: at $x = f(y)$

    $$R(x) = \langle y, x \rangle - \tfrac12 \|x\|^2 - \psi(y)$$

    up to a constant, and $f(y) = \arg\min_x \tfrac12 \|x - y\|^2 + R(x)$. Trained by proximal
    matching on samples with noise of standard deviation sigma, R approximates
    $-\sigma^2 \log p$.

    Subclasses give `potential`; whatever they build from nonnegative combinations, sums and linear
    changes of the input of other potentials is a learned proximal network again. Costs: f is a
    forward and a backward pass; a step of training it differentiates once more.

    Source: Fang, Buchanan, Sulam, 2024, arXiv 2310.14344.

    Attributes:
        least: The smallest eigenvalue that the Jacobian of f can have; above 0 f is invertible.
        sigma: Standard deviation of the noise it was trained on, 0 before.
        range: The smallest and the largest value that it was trained on, equal before.
    """

    sigma: Tensor
    range: Tensor
    least: float

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sigma", torch.zeros(()))
        self.register_buffer("range", torch.zeros(2))

    def potential(self, y: Tensor) -> Tensor:
        """The convex psi of each sample of `y`: shape (n, ...) to (n,), in squared units of y."""
        raise NotImplementedError

    def nonnegative(self) -> list[nn.Parameter]:
        """The weights that convexity needs at 0 or above."""
        raise NotImplementedError

    def check(self, y: Tensor) -> None:
        """Raise an InputError if `y` has not the shape of samples for this network."""
        raise NotImplementedError

    def check_type(self, y: Tensor) -> None:
        """Raise an InputError unless `y` holds numbers of the dtype of the weights."""
        if not tensor("y", y).is_floating_point():
            raise InputError(
                f"the samples are of {y.dtype}: give floating-point numbers, images divided by 255"
            )
        own = next((weight.dtype for weight in self.parameters()), y.dtype)
        if y.dtype != own and not torch.is_autocast_enabled(y.device.type):
            raise InputError(
                f"the samples are of {y.dtype} and the network of {own}: give samples.to({own}), "
                f"or take network.to({y.dtype})"
            )

    def forward(self, y: Tensor) -> Tensor:
        """f(y), of the shape of `y`; works under `no_grad` as well, and leaves `y` as it is.

        Raises:
            InputError: `y` has the wrong shape, holds whole numbers or is of another dtype than
                the weights; it is called under `torch.inference_mode`, where there are no gradients
                at all.
        """
        self.check_type(y)
        if torch.is_inference_mode_enabled():
            raise InputError("f is a gradient, which inference_mode rules out: use torch.no_grad")
        wanted = torch.is_grad_enabled()
        with torch.enable_grad():
            point = y if wanted and y.requires_grad else y.detach().requires_grad_()
            (f,) = torch.autograd.grad(self.potential(point).sum(), point, create_graph=wanted)
        return f

    @torch.no_grad()
    def clip_(self) -> None:
        """Set the negative ones among the weights that may not be negative to 0."""
        for weight in self.nonnegative():
            weight.clamp_(min=0)

    def require_convex(self) -> None:
        """Raise an InputError if negative weights keep this from being a proximal operator."""
        count = sum(int((weight < 0).sum()) for weight in self.nonnegative())
        if count:
            raise InputError(NOT_CONVEX.format(name=type(self).__name__, count=count))

    def prior(self, x: Tensor, steps: int = 100, tolerance: float = 1e-8) -> Prior:
        r"""R at each sample of `x`, by the convex problem $\min_y \psi(y) - \langle x, y \rangle$.

        In float64, by Newton steps with conjugate gradients, all samples side by side; each step
        costs some tens of gradients of f.

        Args:
            x: Samples, shape (n, ...).
            steps: The most Newton steps.
            tolerance: Stop where $\|f(y) - x\|$ is below this, in units of x.

        Returns:
            R, up to one constant for all samples, and how far off it can be.

        Raises:
            InputError: negative weights where convexity needs none; samples of the wrong shape or
                that are not finite; a number out of its range.
        """
        self.require_convex()
        self.check(x)
        if not len(x) or not bool(x.isfinite().all()):
            raise InputError("there are no samples, or some are not finite: give finite ones")
        whole("steps", steps, 0)
        return invert(self, x, steps, between("tolerance", tolerance, 0))

    def extra_repr(self) -> str:
        """The noise it was trained on."""
        return f"sigma={float(self.sigma):g}" if self.sigma > 0 else "not trained"
