"""Greedy block coordinate descent for large convex problems."""

from flatminima.optim.block_coordinate.active_set import identification_steps, nondegeneracy_margin
from flatminima.optim.block_coordinate.forest import Forest, Graph, tree_solve
from flatminima.optim.block_coordinate.linear import LeastSquares, Logistic
from flatminima.optim.block_coordinate.quadratic import LabelPropagation, Quadratic
from flatminima.optim.block_coordinate.result import Solution
from flatminima.optim.block_coordinate.separable import Separable
from flatminima.optim.block_coordinate.smooth import Smooth
from flatminima.optim.block_coordinate.softmax import Softmax
from flatminima.optim.block_coordinate.solver import GreedyBCD

__all__ = [
    "Forest",
    "Graph",
    "GreedyBCD",
    "LabelPropagation",
    "LeastSquares",
    "Logistic",
    "Quadratic",
    "Separable",
    "Smooth",
    "Softmax",
    "Solution",
    "identification_steps",
    "nondegeneracy_margin",
    "tree_solve",
]
