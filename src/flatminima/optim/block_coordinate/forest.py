"""Message passing: linear systems whose graph is a forest, in time linear in their size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from flatminima.errors import InputError
from flatminima.optim.block_coordinate.matrices import Array, Block, is_sparse


@dataclass(frozen=True)
class Forest:
    """A forest over a block: positions in the block, parents before their children.

    Attributes:
        order: Positions, roots first.
        parent: The parent of each position, -1 of a root.
        weight: The matrix entry between a position and its parent, 0 for a root.
    """

    order: list[int]
    parent: list[int]
    weight: list[float]


class Graph:
    """The neighbours in a symmetric matrix: its entries off the diagonal that are not 0."""

    def __init__(self, matrix: Any) -> None:
        if is_sparse(matrix):
            csc = matrix.tocsc()
            columns = np.repeat(np.arange(csc.shape[1]), np.diff(csc.indptr))
            rows, values = csc.indices, csc.data
        else:
            columns, rows = np.nonzero(matrix.T)
            values = matrix[rows, columns]
        kept = (values != 0) & (rows != columns)
        self.size = int(matrix.shape[0])
        starts = np.searchsorted(columns[kept], np.arange(self.size + 1))
        # Lists: a loop in Python reads them several times faster than arrays.
        self._starts: list[int] = starts.tolist()
        self._rows: list[int] = rows[kept].tolist()
        self._values: list[float] = values[kept].tolist()

    def neighbours(self, i: int) -> list[int]:
        """The neighbours of a variable."""
        return self._rows[self._starts[i] : self._starts[i + 1]]

    def edges(self, i: int) -> Iterator[tuple[int, float]]:
        """Neighbours with the entries between."""
        a, b = self._starts[i], self._starts[i + 1]
        return zip(self._rows[a:b], self._values[a:b], strict=True)

    def forest(self, block: Block) -> Forest:
        """The forest of a block; O(the degrees in the block).

        Raises:
            InputError: a cycle among the variables of the block.
        """
        variables = block.tolist()
        position = {v: k for k, v in enumerate(variables)}
        parent, weight = [-1] * len(variables), [0.0] * len(variables)
        order: list[int] = []
        seen = [False] * len(variables)
        for root in range(len(variables)):
            if seen[root]:
                continue
            seen[root] = True
            order.append(root)
            head = len(order) - 1
            while head < len(order):
                k = order[head]
                head += 1
                for neighbour, value in self.edges(variables[k]):
                    other = position.get(neighbour)
                    if other is None or other == parent[k]:
                        continue
                    if seen[other]:
                        raise InputError(
                            f"a block has a cycle through the variables {variables[k]} and "
                            f"{variables[other]}: tree updates need blocks that are forests"
                        )
                    seen[other] = True
                    parent[other], weight[other] = k, value
                    order.append(other)
        return Forest(order, parent, weight)

    def largest_forest(self, order: Block, most: int | None = None) -> Block:
        """Variables in a given order, each unless it would close a cycle with those before it.

        It is left out if two of its neighbours there are in the same tree. O(p + non-zeros), up to
        the inverse Ackermann function.

        Args:
            order: The variables, those wanted most first.
            most: Stop at so many.
        """
        tree: dict[int, int] = {}

        def root(i: int) -> int:
            while tree[i] != i:
                tree[i] = tree[tree[i]]
                i = tree[i]
            return i

        for i in order.tolist():
            roots = [root(j) for j in self.neighbours(i) if j in tree]
            if len(set(roots)) < len(roots):
                continue
            tree[i] = i
            for other in roots:
                tree[other] = i
            if len(tree) == most:
                break
        return np.fromiter(tree, dtype=np.intp, count=len(tree))

    def coloring(self) -> list[Block]:
        """Blocks without an edge inside: greedy colouring, red and black on a bipartite lattice."""
        color = [-1] * self.size
        for start in range(self.size):
            queue = [start] if color[start] < 0 else []
            for i in queue:
                if color[i] >= 0:
                    continue
                taken = {color[j] for j in self.neighbours(i)}
                color[i] = next(c for c in range(self.size) if c not in taken)
                queue += [j for j in self.neighbours(i) if color[j] < 0]
        array = np.array(color)
        return [np.flatnonzero(array == c) for c in range(array.max() + 1)]

    def trees(self) -> list[Block]:
        """All variables cut into forests, each as large as going in order makes it."""
        left, blocks = np.arange(self.size), []
        while left.size:
            block = np.sort(self.largest_forest(left))
            blocks.append(block)
            left = np.setdiff1d(left, block, assume_unique=True)
        return blocks


def tree_solve(forest: Forest, diagonal: Array, right: Array) -> Array:
    """x with M x = c, M having the diagonal and, between child and parent, the forest's weights.

    Elimination from the leaves to the roots, then substitution back; O(|b|).

    Args:
        forest: Over the block.
        diagonal: (|b|,).
        right: c, (|b|,).

    Raises:
        InputError: a pivot that is not above 0: M is singular or not positive.
    """
    d, c, parent, weight = diagonal.tolist(), right.tolist(), forest.parent, forest.weight
    least = float(np.finfo(diagonal.dtype).eps)
    floors = [least * value for value in d]
    for i in reversed(forest.order):
        if not d[i] > floors[i]:
            raise InputError("a block's matrix is singular: give the quadratic a ridge, l2=1e-8")
        p = parent[i]
        if p >= 0:
            factor = weight[i] / d[i]
            d[p] -= factor * weight[i]
            c[p] -= factor * c[i]
    x = c
    for i in forest.order:
        p = parent[i]
        x[i] = (c[i] - weight[i] * x[p]) / d[i] if p >= 0 else c[i] / d[i]
    return np.array(x, dtype=diagonal.dtype)
