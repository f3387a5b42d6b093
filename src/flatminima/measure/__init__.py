"""How flat a minimum is: trace and eigenvalues of the Hessian, and what noise does to the loss."""

from flatminima.measure.curvature import CurvatureReport, curvature
from flatminima.measure.eigen import top_eigenvalues
from flatminima.measure.gap import perturbation_gap
from flatminima.measure.operators import Dense, Hessian, Operator
from flatminima.measure.results import EigenEstimate, Estimate, TraceEstimate
from flatminima.measure.start_sigma import StartSigma, start_sigma
from flatminima.measure.trace import hessian_trace
from flatminima.progress import Progress

__all__ = [
    "CurvatureReport",
    "Dense",
    "EigenEstimate",
    "Estimate",
    "Hessian",
    "Operator",
    "Progress",
    "StartSigma",
    "TraceEstimate",
    "curvature",
    "hessian_trace",
    "perturbation_gap",
    "start_sigma",
    "top_eigenvalues",
]
