"""Loss landscapes: the loss on lines and planes of weights, in forward passes."""

from flatminima.landscape.directions import (
    Trajectory,
    eigen_directions,
    gradient_direction,
    optimizer_directions,
    random_directions,
    trajectory_directions,
)
from flatminima.landscape.frame import Frame, around, through
from flatminima.landscape.normalization import Direction, normalized
from flatminima.landscape.picture import compare_plot
from flatminima.landscape.result import Axis, Landscape, SliceCurvature
from flatminima.landscape.slices import AnotherSlice, loss_slice

__all__ = [
    "AnotherSlice",
    "Axis",
    "Direction",
    "Frame",
    "Landscape",
    "SliceCurvature",
    "Trajectory",
    "around",
    "compare_plot",
    "eigen_directions",
    "gradient_direction",
    "loss_slice",
    "normalized",
    "optimizer_directions",
    "random_directions",
    "through",
    "trajectory_directions",
]
