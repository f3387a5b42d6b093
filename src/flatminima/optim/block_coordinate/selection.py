"""Which block moves next."""

from __future__ import annotations

import zlib
from functools import cached_property

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate import spectra
from flatminima.optim.block_coordinate.forest import Graph
from flatminima.optim.block_coordinate.matrices import Array, Block
from flatminima.optim.block_coordinate.separable import Separable
from flatminima.optim.block_coordinate.smooth import Smooth

BLIND = ("random", "cyclic", "lipschitz")
"""Rules that look at no gradient."""

GREEDY = ("gs", "gsl", "gsd", "gsq")
"""Rules that look at all of it."""


class FixedBlocks:
    r"""Rules over a partition.

    A greedy rule takes the block with the largest sum of what a model of each coordinate falls by,
    $\max_d -(g_i d + c_i d^2 / 2 + \psi_i(x_i + d) - \psi_i(x_i))$: "gs" with one c for all, "gsl"
    with $L_b$ of the block, "gsd" with $L_i$. Where psi is 0 they are $\lVert g_b \rVert^2$,
    $\lVert g_b \rVert^2 / L_b$ and $\sum g_i^2 / L_i$, up to a factor. "gsq" takes the largest
    $g_b^\top H_b^{-1} g_b$. Squared 2-norms carry the guarantees, not sums of absolute values.
    """

    def __init__(self, rule: str, blocks: list[Block], smooth: Smooth, added: Separable) -> None:
        self.rule, self.blocks, self.smooth, self.added = rule, blocks, smooth, added
        self._joined = np.concatenate(blocks)
        self._starts = np.cumsum([0, *(b.size for b in blocks[:-1])])
        self._inverse_roots: dict[int, Array] = {}

    @cached_property
    def constants(self) -> Array:
        """L_b of each block."""
        found = [spectra.largest(self.smooth.bound(b)) for b in self.blocks]
        return np.array(found, dtype=self.smooth.dtype)

    def inverse_root(self, block: Block) -> Array:
        """R with R^T R = H_b^+; kept."""
        if id(block) not in self._inverse_roots:
            self._inverse_roots[id(block)] = spectra.inverse_root(self.smooth.bound(block))
        return self._inverse_roots[id(block)]

    @cached_property
    def _roots(self) -> tuple[Array, Array]:
        # Padded, so that one product scores all blocks; padding points behind the gradient.
        most = max(b.size for b in self.blocks)
        where = np.full((len(self.blocks), most), self.smooth.size)
        roots = np.zeros((len(self.blocks), most, most), dtype=self.smooth.dtype)
        for k, block in enumerate(self.blocks):
            where[k, : block.size] = block
            roots[k, : block.size, : block.size] = self.inverse_root(block)
        return where, roots

    def choose(
        self,
        step: int,
        rng: np.random.Generator,
        x: Array,
        g: Array | None,
        estimates: Array | None,
    ) -> Block:
        """The next block.

        Args:
            step: Steps taken so far.
            rng: For the random rules.
            x: Where the variables are.
            g: The gradient; of the greedy rules only.
            estimates: Lipschitz constants found on the way, in place of the known ones.
        """
        if self.rule == "random":
            return self.blocks[int(rng.integers(len(self.blocks)))]
        if self.rule == "cyclic":
            return self.blocks[step % len(self.blocks)]
        if self.rule == "lipschitz":
            constants = self.constants.astype(np.float64)
            p = constants / constants.sum()
            return self.blocks[int(rng.choice(len(self.blocks), p=p))]
        assert g is not None
        return self.blocks[int(np.argmax(self.scores(x, g, estimates)))]

    def scores(self, x: Array, g: Array, estimates: Array | None = None) -> Array:
        """The score of each block: what the rule's model falls by, of "gs" a rank."""
        if self.rule == "gsq":
            where, roots = self._roots
            parts = np.append(g, 0)[where]
            moved = np.matmul(roots, parts[:, :, None])[:, :, 0]
            return np.asarray(0.5 * np.square(moved).sum(1))
        each = self.added.decrease(x, g, self._curvature(estimates))
        return np.asarray(np.add.reduceat(each[self._joined], self._starts))

    def fingerprint(self) -> int:
        """A number that tells blocks, penalties and bounds apart."""
        return _checksum(self.added, *(np.append(block, -1) for block in self.blocks))

    def _curvature(self, estimates: Array | None) -> Array:
        each = self.smooth.lipschitz if estimates is None else estimates
        if self.rule == "gs":
            return np.full_like(each, each.max())
        if self.rule == "gsd":
            return each
        of_blocks = self.constants
        if estimates is not None:
            of_blocks = np.maximum.reduceat(estimates[self._joined], self._starts)
        spread = np.empty_like(each)
        spread[self._joined] = np.repeat(of_blocks, [b.size for b in self.blocks])
        return spread


class VariableBlocks:
    r"""Rules over any `block_size` variables.

    "gs" takes those with the largest $|g_i|$ and "gsd" with the largest $|g_i| / \sqrt{L_i}$ (with
    psi, the largest falls of the model of `FixedBlocks`). The best block by "gsl" or "gsq" is a
    combinatorial problem: "gsl" is "gsd" here, and "gsq" is approximated by ten rounds of iterative
    hard thresholding in the metric of D = diag(L_i), with step 1 / m, m the largest eigenvalue of
    $D^{-1/2} H D^{-1/2}$: keep the largest `block_size` entries of $d - D^{-1} (g + H d) / m$. It
    starts from the Newton step of the block of "gsd", and the better of the two blocks is taken.
    (The paper has no D; without it the widest column alone sets the step of all.)

    With a graph, blocks are forests: the order of the rule, less what would close a cycle.
    """

    def __init__(
        self,
        rule: str,
        block_size: int,
        smooth: Smooth,
        added: Separable,
        graph: Graph | None = None,
    ) -> None:
        if rule == "cyclic" and graph is not None:
            raise InputError("cyclic blocks of any forest do not exist: give partition='trees'")
        if rule == "gsq" and graph is not None:
            raise InputError("forests are grown by 'gs' or 'gsd', not 'gsq'")
        self.rule, self.block_size = rule, block_size
        self.smooth, self.added, self.graph = smooth, added, graph

    def choose(
        self,
        step: int,
        rng: np.random.Generator,
        x: Array,
        g: Array | None,
        estimates: Array | None,
    ) -> Block:
        """The next block; arguments as of `FixedBlocks.choose`."""
        size, tau = self.smooth.size, self.block_size
        each = self.smooth.lipschitz if estimates is None else estimates
        if self.rule == "cyclic":
            return np.sort((step * tau + np.arange(tau)) % size)
        if self.rule in BLIND:
            weights = None if self.rule == "random" else each.astype(np.float64)
            if weights is not None:
                weights = weights / weights.sum()
            count = size if self.graph is not None else tau
            return self._cut(rng.choice(size, count, replace=False, p=weights))
        assert g is not None
        curvature = np.full_like(each, each.max()) if self.rule == "gs" else each
        scores = self.added.decrease(x, g, curvature)
        if self.graph is not None:
            return self._cut(np.argsort(-scores, kind="stable"))
        block = _top(scores, tau)
        return self._thresholded(g, block) if self.rule == "gsq" else block

    def fingerprint(self) -> int:
        """A number that tells penalties and bounds apart."""
        return _checksum(self.added)

    def _cut(self, order: Block) -> Block:
        if self.graph is None:
            return np.sort(order)
        return np.sort(self.graph.largest_forest(order, self.block_size))

    def _thresholded(self, g: Array, block: Block) -> Block:
        scale = self.smooth.lipschitz
        rate = 1 / self.smooth.largest_scaled_curvature
        d = np.zeros_like(g)
        d[block] = -spectra.solve(self.smooth.bound(block), g[block])
        for _ in range(10):
            moved = d - rate * (g + self.smooth.bound_times(d)) / scale
            kept = _top(scale * moved * moved, self.block_size)
            before, d = d, np.zeros_like(g)
            d[kept] = moved[kept]
            if np.abs(d - before).max() < 1e-10 * np.abs(d).max():
                break
        found = _top(scale * d * d, self.block_size)
        return found if self._promise(g, found) > self._promise(g, block) else block

    def _promise(self, g: Array, block: Block) -> float:
        """g_b H_b^+ g_b."""
        return float(g[block] @ spectra.solve(self.smooth.bound(block), g[block]))


def _checksum(added: Separable, *more: Array) -> int:
    parts = (added.l1, added.lower, added.upper, *more)
    return zlib.crc32(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))


def _top(values: Array, count: int) -> Block:
    """The positions of the largest; ties go to the lowest positions."""
    return np.sort(np.argsort(-values, kind="stable")[:count])
