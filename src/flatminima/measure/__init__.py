"""How flat a minimum is: trace and eigenvalues of the Hessian, and what noise does to the loss."""

from flatminima.measure.curvature import CurvatureReport, curvature
from flatminima.measure.density import spectral_density
from flatminima.measure.diagonal import (
    DiagonalEstimate,
    hessian_diagonal,
    squared_frobenius_norm,
)
from flatminima.measure.eigen import top_eigenvalues
from flatminima.measure.gap import perturbation_gap
from flatminima.measure.gauss_newton import EmpiricalFisher, GaussNewton, MonteCarloFisher
from flatminima.measure.hessian import Hessian
from flatminima.measure.operators import Dense, LowRank, Operator, Sum
from flatminima.measure.results import EigenEstimate, Estimate, TraceEstimate
from flatminima.measure.spectrum import SpectralDensity
from flatminima.measure.start_sigma import StartSigma, start_sigma
from flatminima.measure.trace import hessian_trace
from flatminima.progress import Progress

__all__ = [
    "CurvatureReport",
    "Dense",
    "DiagonalEstimate",
    "EigenEstimate",
    "EmpiricalFisher",
    "Estimate",
    "GaussNewton",
    "Hessian",
    "LowRank",
    "MonteCarloFisher",
    "Operator",
    "Progress",
    "SpectralDensity",
    "StartSigma",
    "Sum",
    "TraceEstimate",
    "curvature",
    "hessian_diagonal",
    "hessian_trace",
    "perturbation_gap",
    "spectral_density",
    "squared_frobenius_norm",
    "start_sigma",
    "top_eigenvalues",
]
