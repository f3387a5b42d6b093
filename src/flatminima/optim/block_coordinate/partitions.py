"""How the variables are cut into fixed blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from flatminima.errors import InputError, unknown
from flatminima.optim.block_coordinate.forest import Graph
from flatminima.optim.block_coordinate.matrices import Array, Block

CUT = ("order", "sort", "average")
OF_A_GRAPH = ("red-black", "trees")


def partition(
    how: str | Sequence[Any], size: int, block_size: int, lipschitz: Array, graph: Graph | None
) -> list[Block]:
    """Fixed blocks that cover all variables once.

    Args:
        how: "order" cuts them as they come, "sort" by their Lipschitz constants, large with large,
            "average" interleaves the largest and the smallest; "red-black" colours a quadratic's
            graph, "trees" cuts it into forests. Or the blocks themselves, index by index.
        size: The number of variables.
        block_size: Variables in a block; the last may have fewer. Not for those of a graph.
        lipschitz: L_i.
        graph: Of the quadratic, or None for another objective.

    Raises:
        InputError: an unknown name, no graph, or blocks that do not cover the variables once.
    """
    if not isinstance(how, str):
        return _given(how, size)
    if how not in CUT + OF_A_GRAPH:
        raise unknown("partition", how, CUT + OF_A_GRAPH)
    if how in OF_A_GRAPH:
        if graph is None:
            raise InputError(f"partition={how!r} needs the graph of a Quadratic: use 'sort'")
        return graph.coloring() if how == "red-black" else graph.trees()
    order = np.arange(size)
    if how != "order":
        order = np.argsort(-lipschitz, kind="stable")
    if how == "average":
        mixed = np.empty_like(order)
        mixed[::2], mixed[1::2] = order[: (size + 1) // 2], order[: size // 2 - size - 1 : -1]
        order = mixed
    return [np.sort(order[i : i + block_size]) for i in range(0, size, block_size)]


def _given(blocks: Sequence[Any], size: int) -> list[Block]:
    made = []
    for block in blocks:
        array = np.asarray(block.detach().cpu() if hasattr(block, "detach") else block)
        if array.ndim != 1 or not array.size or array.dtype.kind not in "iu":
            raise InputError(f"a block must be a list of variables, not {block!r}")
        if array.min() < 0 or array.max() >= size:
            raise InputError(f"a block has variable {array.max()}: there are 0 to {size - 1}")
        made.append(array.astype(np.intp))
    times = np.bincount(np.concatenate(made), minlength=size) if made else np.zeros(size, int)
    if (times != 1).any():
        i = int(np.argmax(times != 1))
        raise InputError(
            f"the blocks must cover each of the {size} variables once, and variable {i} is in "
            f"{times[i]} of them"
        )
    return made
