"""Greedy block coordinate descent."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flatminima.errors import InputError, unknown
from flatminima.optim.block_coordinate import spectra, updates
from flatminima.optim.block_coordinate.active_set import nondegeneracy_margin
from flatminima.optim.block_coordinate.forest import Forest, Graph
from flatminima.optim.block_coordinate.matrices import Array, Block, numbers
from flatminima.optim.block_coordinate.partitions import CUT, OF_A_GRAPH, partition
from flatminima.optim.block_coordinate.quadratic import Quadratic
from flatminima.optim.block_coordinate.result import Solution
from flatminima.optim.block_coordinate.selection import BLIND, GREEDY, FixedBlocks, VariableBlocks
from flatminima.optim.block_coordinate.separable import Bounds, Separable
from flatminima.optim.block_coordinate.smooth import Smooth

REFRESH = 1000
"""Steps after which the margins are computed anew, since adding to them gathers rounding errors."""


class GreedyBCD:
    r"""Minimizes $F(x) = f(x) + \lambda \lVert x \rVert_1$ within bounds, a block at a time.

    Updates of the block b, with what f is guaranteed to fall by:

        "lb"      x_b -= g_b / L_b                      ||g_b||^2 / (2 L_b)
        "hb"      x_b -= H_b^+ g_b                      g_b H_b^+ g_b / 2
        "newton"  x_b -= alpha Hessian_b^+ g_b          alpha by Armijo's rule
        "la"      as "lb", L_b doubled from 1 until its model holds
        "tmp"     two-metric projection: Newton on what is free, within bounds and with l1
        "tree"    x_b -= M_bb^-1 g_b by message passing: a `Quadratic`, blocks that are forests

    with L_b and H_b above the Hessian on the block at every x. With bounds or l1, "lb" and "la"
    take proximal steps, and "hb", "newton" and "tree" are refused. How blocks are chosen: see
    `FixedBlocks` and `VariableBlocks`.

    Cost of a step: a greedy rule reads the gradient, O(non-zeros), or O(p) of a `Quadratic`; the
    update O(non-zeros of the columns of the block + |b|^3), "tree" O(|b|). Memory: O(non-zeros of
    the data + n + p); rules that need L_b or H_b of fixed blocks keep p |b| numbers more ("gsq") or
    one for each block. All is computed in numpy, on a CPU; x goes back as the data came.

    Source: Nutini, Laradji, Schmidt, Let's Make Block Coordinate Descent Converge Faster, JMLR
    23(131), 2022, arXiv 1712.08859.

    Args:
        objective: f: `LeastSquares`, `Logistic`, `Softmax`, `Quadratic`, `LabelPropagation`, or a
            `Smooth` of yours.
        block_size: Variables in a block; None only for "tree", whose blocks are then as large as
            they can be.
        selection: "random", "cyclic", "lipschitz" (at random, in proportion to L), "gs", "gsl",
            "gsd" or "gsq".
        partition: How fixed blocks are cut: "sort", "order", "average"; of a `Quadratic` also
            "red-black" and "trees"; or lists of variables. None takes any variables in each step.
        update: One of the above.
        l1: lambda, 0 or above, a number or one for each variable.
        bounds: (lower, upper), each None, a number or one for each variable.
        start: x at first, in the objective's shape; 0 by default. It is brought within the bounds.
        seed: Of the random rules.

    Raises:
        InputError: an unknown name; a block size out of range; infeasible bounds; blocks that do
            not cover the variables once; an update that cannot be taken with the rest.
    """

    def __init__(
        self,
        objective: Smooth,
        block_size: int | None,
        *,
        selection: str = "gsl",
        partition: str | Sequence[Any] | None = "sort",
        update: str = "hb",
        l1: Any = 0.0,
        bounds: Bounds = None,
        start: Any = None,
        seed: int = 0,
    ) -> None:
        if not isinstance(objective, Smooth):
            raise InputError(
                f"objective is {objective!r}: give a Smooth, such as LeastSquares(A, y)"
            )
        if selection not in BLIND + GREEDY:
            raise unknown("selection", selection, BLIND + GREEDY)
        if update not in updates.UPDATES:
            raise unknown("update", update, updates.UPDATES)
        self.objective, self.selection, self.update = objective, selection, update
        self.added = Separable(objective.size, objective.dtype, l1, bounds)
        self._check(selection, update, block_size, partition)
        self._graph = self._graph_for(update, partition)
        self.blocks = self._blocks(selection, partition, block_size)
        self._forests: dict[int, Forest] = {}
        if update == "tree" and isinstance(self.blocks, FixedBlocks):
            assert self._graph is not None
            self._forests = {id(b): self._graph.forest(b) for b in self.blocks.blocks}
        self._constants: dict[int, float] = {}
        x = np.zeros(objective.size, objective.dtype) if start is None else _start(objective, start)
        self._x = self.added.project(x)
        self._z = objective.margins(self._x)
        self._estimates = np.ones(objective.size, objective.dtype) if update == "la" else None
        self._rng = np.random.default_rng(seed)
        self.steps = 0
        self.identified_at = 0

    @property
    def x(self) -> Any:
        """The variables as they are, a copy in the objective's shape."""
        return self.objective.give_back(self._x)

    def value(self) -> float:
        """F."""
        return self._here().value()

    def gradient(self) -> Array:
        """The gradient of f, (p,)."""
        return self.objective.gradient(self._x, self._z)

    def violation(self) -> float:
        """The largest entry of the proximal gradient: max |g_i| where there is no l1 or bound."""
        return self.added.violation(self._x, self.gradient(), self.objective.lipschitz)

    def nondegeneracy_margin(self) -> float:
        """How clearly the variables on bounds and kinks belong there; see `active_set`."""
        return nondegeneracy_margin(self.added, self._x, self.gradient())

    def step(self) -> Block:
        """Choose a block and update it.

        Returns:
            The variables of the block.
        """
        return self._step(self.gradient() if self.selection in GREEDY else None)

    def run(self, steps: int, tolerance: float | None = None, *, record: bool = False) -> Solution:
        """Take steps until there were so many, or the violation is small.

        Args:
            steps: At most so many more.
            tolerance: Stop where `violation` is not above it, which greedy rules see in each step
                and the others look for once in a sweep. None takes all steps.
            record: Whether F is kept before each step and after the last.

        Raises:
            InputError: a number of steps or a tolerance below 0.
        """
        if steps < 0 or (tolerance is not None and not tolerance >= 0):
            raise InputError(f"steps={steps!r}, tolerance={tolerance!r}: give 0 or more")
        greedy, values = self.selection in GREEDY, []
        sweep = max(1, self.objective.size // (self._block_size or self.objective.size))
        for k in range(steps):
            look = greedy or (tolerance is not None and k % sweep == 0)
            g = self.gradient() if look else None
            if tolerance is not None and g is not None and self._violation(g) <= tolerance:
                break
            if record:
                values.append(self.value())
            self._step(g if greedy else None)
        violation, value = self.violation(), self.value()
        return Solution(
            x=self.x,
            value=value,
            steps=self.steps,
            violation=violation,
            converged=tolerance is not None and violation <= tolerance,
            identified_at=self.identified_at,
            values=(*values, value) if record else (),
        )

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on beside the problem: loading it resumes bit for bit."""
        state = {
            "x": torch.from_numpy(self._x.copy()),
            "margins": torch.from_numpy(self._z.copy()),
            "steps": self.steps,
            "identified_at": self.identified_at,
            "rng": copy.deepcopy(self._rng.bit_generator.state),
            "settings": [self.selection, self.update, self._block_size, self.objective.size],
            "fingerprint": self.blocks.fingerprint(),
        }
        if self._estimates is not None:
            state["estimates"] = torch.from_numpy(self._estimates.copy())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a solver of the same problem and settings.

        Raises:
            InputError: a state of another solver.
        """
        settings = [self.selection, self.update, self._block_size, self.objective.size]
        if list(state["settings"]) != settings or state["margins"].shape != self._z.shape:
            raise InputError(
                f"the state is of a solver with {list(state['settings'])} (selection, update, "
                f"block size, variables) and this one has {settings}"
            )
        if state["fingerprint"] != self.blocks.fingerprint():
            raise InputError("the state is of a solver with other blocks, another l1 or bounds")
        self._x = state["x"].numpy().astype(self.objective.dtype)
        self._z = state["margins"].numpy().astype(self.objective.dtype)
        self.steps, self.identified_at = state["steps"], state["identified_at"]
        self._rng.bit_generator.state = copy.deepcopy(state["rng"])
        if self._estimates is not None:
            self._estimates = state["estimates"].numpy().astype(self.objective.dtype)

    def _step(self, g: Array | None) -> Block:
        block = self.blocks.choose(self.steps, self._rng, self._x, g, self._estimates)
        on_block = self.objective.gradient_at(self._x, self._z, block) if g is None else g[block]
        change = self._change(block, on_block)
        there = self._x[block]
        landed = self.added.land(there, change, block)
        self._x[block] = landed
        self._z = self._z + self.objective.shift(block, landed - there)
        self.steps += 1
        if self.steps % REFRESH == 0:
            self._z = self.objective.margins(self._x)
        if not np.array_equal(self.added.pinned(there, block), self.added.pinned(landed, block)):
            self.identified_at = self.steps
        return block

    def _change(self, block: Block, g: Array) -> Array:
        here = self._here()
        if self.update == "lb":
            return updates.gradient_step(here, block, g, self._constant(block))
        if self.update == "hb":
            return updates.matrix_step(self._inverse_root(block), g)
        if self.update == "newton":
            return updates.newton_step(here, block, g)
        if self.update == "tmp":
            return updates.two_metric_step(here, block, g)
        if self.update == "la":
            assert self._estimates is not None
            return updates.searching_step(here, block, g, self._estimates)
        assert self._graph is not None
        return updates.tree_step(here, block, g, self._graph, self._forests.get(id(block)))

    def _constant(self, block: Block) -> float:
        """L_b; kept where blocks are fixed."""
        if not isinstance(self.blocks, FixedBlocks):
            return spectra.largest(self.objective.bound(block))
        if id(block) not in self._constants:
            self._constants[id(block)] = spectra.largest(self.objective.bound(block))
        return self._constants[id(block)]

    def _inverse_root(self, block: Block) -> Array:
        if isinstance(self.blocks, FixedBlocks):
            return self.blocks.inverse_root(block)
        return spectra.inverse_root(self.objective.bound(block))

    def _violation(self, g: Array) -> float:
        return self.added.violation(self._x, g, self.objective.lipschitz)

    def _here(self) -> updates.Here:
        return updates.Here(self.objective, self.added, self._x, self._z)

    def _graph_for(self, update: str, partition: Any) -> Graph | None:
        if (isinstance(partition, str) and partition in OF_A_GRAPH) or update == "tree":
            if not isinstance(self.objective, Quadratic):
                raise InputError("trees are of the matrix of a Quadratic: use update='hb'")
            return Graph(self.objective.M)
        return None

    def _blocks(
        self, selection: str, how: str | Sequence[Any] | None, block_size: int | None
    ) -> FixedBlocks | VariableBlocks:
        size = self.objective.size
        self._block_size = block_size
        if how is None:
            grown = self._graph if self.update == "tree" else None
            tau = block_size or size
            return VariableBlocks(selection, tau, self.objective, self.added, grown)
        made = partition(how, size, block_size or size, self.objective.lipschitz, self._graph)
        self._block_size = max(b.size for b in made)
        return FixedBlocks(selection, made, self.objective, self.added)

    def _check(
        self, selection: str, update: str, block_size: int | None, how: str | Sequence[Any] | None
    ) -> None:
        cut = how is None or (isinstance(how, str) and how in CUT)
        if block_size is None and cut and not (update == "tree" and how is None):
            raise InputError("block_size is missing: how many variables are in a block?")
        if block_size is not None and not (
            isinstance(block_size, int | np.integer)
            and not isinstance(block_size, bool)
            and 1 <= block_size <= self.objective.size
        ):
            raise InputError(
                f"block_size is {block_size!r}: give a whole number from 1 to the number of "
                f"variables, {self.objective.size}"
            )
        if not self.added.trivial and update in updates.SMOOTH_ONLY:
            raise InputError(f"update={update!r} knows no bounds and no l1: use 'tmp' or 'lb'")
        if not self.added.trivial and selection == "gsq":
            raise InputError("selection='gsq' knows no bounds and no l1: use 'gsd' or 'gsl'")


def _start(objective: Smooth, start: Any) -> Array:
    x = numbers("start", start, objective.dtype)
    if x.shape != objective.shape:
        raise InputError(f"start has the shape {x.shape}: give {objective.shape}")
    return x.ravel().copy()
