"""How flat a minimum is: trace and eigenvalues of the Hessian, and what noise does to the loss."""

from flatminima.measure.bounds import PacBayesBound, pac_bayes_bound
from flatminima.measure.criteria import SpectralCriteria, spectral_criteria
from flatminima.measure.curvature import curvature
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
from flatminima.measure.layer_bound import LayerBound, layer_bound
from flatminima.measure.live import LiveTrace
from flatminima.measure.noise_stability import (
    NoiseStability,
    StabilityPoint,
    noise_stability,
    smoothed_curvature,
)
from flatminima.measure.operators import Dense, LowRank, Operator, Shift, Sum
from flatminima.measure.precision import in_float32
from flatminima.measure.report import CurvatureReport
from flatminima.measure.results import EigenEstimate, Estimate, TraceEstimate
from flatminima.measure.sharpness import Sharpness, average_sharpness, worst_case_sharpness
from flatminima.measure.spectrum import SpectralDensity
from flatminima.measure.stability import StabilityReport, dynamical_stability
from flatminima.measure.start_sigma import StartSigma, start_sigma
from flatminima.measure.thresholds import LinearSGD, Threshold
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
    "LayerBound",
    "LinearSGD",
    "LiveTrace",
    "LowRank",
    "MonteCarloFisher",
    "NoiseStability",
    "Operator",
    "PacBayesBound",
    "Progress",
    "Sharpness",
    "Shift",
    "SpectralCriteria",
    "SpectralDensity",
    "StabilityPoint",
    "StabilityReport",
    "StartSigma",
    "Sum",
    "Threshold",
    "TraceEstimate",
    "average_sharpness",
    "curvature",
    "dynamical_stability",
    "hessian_diagonal",
    "hessian_trace",
    "in_float32",
    "layer_bound",
    "noise_stability",
    "pac_bayes_bound",
    "perturbation_gap",
    "smoothed_curvature",
    "spectral_criteria",
    "spectral_density",
    "squared_frobenius_norm",
    "start_sigma",
    "top_eigenvalues",
    "worst_case_sharpness",
]
