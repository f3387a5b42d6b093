"""The networks: of vectors, of images, and of images by their patches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from flatminima.arguments import above, between, kind_of, tensor, whole
from flatminima.errors import InputError
from flatminima.models.learned_proximal.proximal import LearnedProximal


class LPN(LearnedProximal):
    r"""A learned proximal network of vectors.

    $$z_1 = g(H_0 y + b_0), \quad z_{k+1} = g(W_k z_k + H_k y + b_k), \quad
      \psi(y) = \langle w, z_K \rangle + \langle c, y \rangle + \alpha \|y\|^2$$

    with $W_k, w \ge 0$ and g the softplus $\log(1 + e^{\beta t}) / \beta$, which is convex,
    increasing and smooth; so $\psi$ is convex (Amos, Xu, Kolter, 2017, arXiv 1609.07152) and the
    Jacobian of $f = \nabla \psi$ is symmetric with eigenvalues of at least $2 \alpha$.

    Args:
        dim: Numbers of a sample, n; inputs have the shape (batch, n).
        hidden: Units of each layer.
        layers: Layers, K, 1 or more.
        beta: Sharpness of the softplus, per unit of the samples: about 10 for data of size 1, 100
            for pixels between 0 and 1.
        alpha: Of the quadratic term, 0 or above. Above 0 f is invertible and every x has a prior.
        free_mean: The mean of a sample passes unchanged, and the rest does not depend on it:
            $\psi(y) = \tfrac{n}{2} \bar y^2 + \psi'(y - \bar y)$, which is convex too. For patches
            of images, whose brightness is as good as any other.

    Raises:
        InputError: a number out of its range; at a call, samples of the wrong shape or dtype.
    """

    def __init__(
        self,
        dim: int,
        hidden: int = 64,
        layers: int = 2,
        beta: float = 10.0,
        alpha: float = 1e-2,
        free_mean: bool = False,
    ) -> None:
        super().__init__()
        self.dim, self.free_mean = whole("dim", dim, 1), free_mean
        self.beta, self.alpha = above("beta", beta), between("alpha", alpha, 0)
        hidden, layers = whole("hidden", hidden, 1), whole("layers", layers, 1)
        self.least = min(2 * self.alpha, 1.0) if free_mean else 2 * self.alpha
        self.skips = nn.ModuleList(nn.Linear(dim, hidden) for _ in range(layers))
        self.inner = nn.ParameterList(_positive(hidden, hidden) for _ in range(layers - 1))
        self.out = _positive(1, hidden)
        self.shift = nn.Parameter(torch.zeros(dim))

    def potential(self, y: Tensor) -> Tensor:
        """psi of each row of `y`, shape (batch, n) to (batch,)."""
        self.check(y)
        self.check_type(y)
        if not self.free_mean:
            return self._centred(y)
        mean = y.mean(1, keepdim=True)
        return self.dim / 2 * mean[:, 0].square() + self._centred(y - mean)

    def _centred(self, y: Tensor) -> Tensor:
        z = functional.softplus(self.skips[0](y), self.beta)
        for weight, skip in zip(self.inner, list(self.skips)[1:], strict=True):
            z = functional.softplus(functional.linear(z, weight) + skip(y), self.beta)
        top = functional.linear(z, self.out)[:, 0] + y @ self.shift
        return top + self.alpha * y.square().sum(1)

    def nonnegative(self) -> list[nn.Parameter]:
        """The weights between layers and those of the output."""
        return [*self.inner, self.out]

    def check(self, y: Tensor) -> None:
        """Raise an InputError unless `y` has the shape (batch, n)."""
        if tensor("y", y).dim() != 2 or y.shape[1] != self.dim:
            raise InputError(
                f"this network takes samples of {self.dim} numbers, shape (batch, {self.dim}), "
                f"and these have the shape {tuple(y.shape)}; of an image with its patches see "
                "PatchLPN"
            )


class ConvLPN(LearnedProximal):
    r"""A learned proximal network of images of any size.

    As `LPN`, with convolutions of `kernel` x `kernel` for $H_k$ and $W_k$, and $\psi$ the sum over
    all places: so one network is a proximal operator at every image size, with a prior that is a
    sum of terms of neighbourhoods. Images continue periodically.

    Args:
        channels: Of the images; inputs have the shape (batch, channels, height, width).
        hidden: Channels of each layer.
        layers: Layers, 1 or more; each sees `kernel` - 1 pixels further.
        kernel: Side of the convolutions, odd.
        beta: Sharpness of the softplus.
        alpha: Of the quadratic term, 0 or above.

    Raises:
        InputError: a number out of its range; at a call, images of the wrong shape or dtype.
    """

    def __init__(
        self,
        channels: int = 1,
        hidden: int = 32,
        layers: int = 3,
        kernel: int = 3,
        beta: float = 100.0,
        alpha: float = 1e-3,
    ) -> None:
        super().__init__()
        if whole("kernel", kernel, 1) % 2 == 0:
            raise InputError(f"kernel is {kernel}: a convolution with a centre needs an odd side")
        self.channels, self.kernel = whole("channels", channels, 1), kernel
        self.beta, self.alpha = above("beta", beta), between("alpha", alpha, 0)
        hidden, layers = whole("hidden", hidden, 1), whole("layers", layers, 1)
        self.least = 2 * self.alpha
        self.skips = nn.ModuleList(nn.Conv2d(channels, hidden, kernel) for _ in range(layers))
        self.inner = nn.ParameterList(
            _positive(hidden, hidden, kernel, kernel) for _ in range(layers - 1)
        )
        self.out = _positive(1, hidden, 1, 1)

    def potential(self, y: Tensor) -> Tensor:
        """psi of each image of `y`, shape (batch, channels, height, width) to (batch,)."""
        self.check(y)
        self.check_type(y)
        wide = self._wrapped(y)
        z = functional.softplus(self.skips[0](wide), self.beta)
        for weight, skip in zip(self.inner, list(self.skips)[1:], strict=True):
            inner = functional.conv2d(self._wrapped(z), weight)
            z = functional.softplus(inner + skip(wide), self.beta)
        top = functional.conv2d(z, self.out).flatten(1).sum(1)
        return top + self.alpha * y.square().flatten(1).sum(1)

    def _wrapped(self, y: Tensor) -> Tensor:
        return functional.pad(y, [self.kernel // 2] * 4, mode="circular")

    def nonnegative(self) -> list[nn.Parameter]:
        """The weights between layers and those of the output."""
        return [*self.inner, self.out]

    def check(self, y: Tensor) -> None:
        """Raise an InputError unless `y` is a batch of images that are large enough."""
        _images(y, self.channels, self.kernel)


class PatchLPN(LearnedProximal):
    r"""A network of patches, put to whole images: exactly a proximal operator again.

    $$\psi(y) = \tfrac1c \sum_i \psi'(P_i y), \qquad f(y) = \tfrac1c \sum_i P_i^\top f'(P_i y)$$

    over all patches of `side` x `side` at every `stride`-th row and column, which continue
    periodically, so that each pixel is in $c = (\text{side} / \text{stride})^2$ of them. f is the
    average of the patches' results, and $\psi$ is convex because each term is.

    Args:
        net: An `LPN` of patches, rows of channels * side * side numbers.
        side: Of a patch.
        stride: From a patch to the next; divides side.
        channels: Of the images.

    Raises:
        InputError: the numbers do not fit; at a call, images whose sides `stride` does not divide
            or that are smaller than a patch.
    """

    def __init__(self, net: LPN, side: int, stride: int = 1, channels: int = 1) -> None:
        super().__init__()
        if not isinstance(net, LPN):
            raise InputError(f"the network of patches is {kind_of(net)}: give an LPN")
        whole("side", side, 1)
        if net.dim != whole("channels", channels, 1) * side * side:
            raise InputError(
                f"the network takes {net.dim} numbers, and a patch of side {side} with {channels} "
                f"channels has {channels * side * side}"
            )
        if whole("stride", stride, 1) > side or side % stride:
            raise InputError(
                f"stride {stride} does not divide the side {side} of a patch, so pixels would "
                "count differently and the average would be no proximal operator"
            )
        self.net, self.side, self.stride, self.channels = net, side, stride, channels
        self.least, self.sigma, self.range = net.least, net.sigma, net.range

    def potential(self, y: Tensor) -> Tensor:
        """psi of each image of `y`, shape (batch, channels, height, width) to (batch,)."""
        self.check(y)
        rim = self.side - self.stride
        # Not functional.pad, whose circular form cannot be wider than the image.
        wide = torch.cat([y, y[:, :, :rim]], 2)
        wide = torch.cat([wide, wide[:, :, :, :rim]], 3)
        patches = functional.unfold(wide, self.side, stride=self.stride).transpose(1, 2)
        each = self.net.potential(patches.reshape(-1, self.net.dim))
        return each.reshape(len(y), -1).sum(1) * (self.stride / self.side) ** 2

    def nonnegative(self) -> list[nn.Parameter]:
        """Those of the network of patches."""
        return self.net.nonnegative()

    def check(self, y: Tensor) -> None:
        """Raise an InputError unless `y` is a batch of images that patches cover evenly."""
        _images(y, self.channels, self.side)
        if y.shape[2] % self.stride or y.shape[3] % self.stride:
            raise InputError(
                f"the images are {y.shape[2]} x {y.shape[3]} pixels, and the stride {self.stride} "
                "does not divide that: crop them, or take stride 1"
            )


def _positive(*shape: int) -> nn.Parameter:
    """Weights of about one in all: a layer starts as an average of the one below."""
    many = math.prod(shape[1:])
    return nn.Parameter(torch.rand(shape) * 2 / many)


def _images(y: Tensor, channels: int, least: int) -> None:
    if tensor("y", y).dim() != 4 or y.shape[1] != channels:
        raise InputError(
            f"images have the shape (batch, {channels}, height, width) here, and these have "
            f"{tuple(y.shape)}"
        )
    if min(y.shape[2:]) < least:
        raise InputError(
            f"the images are {y.shape[2]} x {y.shape[3]} pixels, smaller than the network's "
            f"{least} x {least}: give larger ones"
        )
