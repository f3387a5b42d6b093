"""How flat a minimum is: trace and eigenvalues of the Hessian, and what noise does to the loss."""

from flatminima.measure.bounds import PacBayesBound, pac_bayes_bound
from flatminima.measure.criteria import SpectralCriteria, spectral_criteria
from flatminima.measure.curvature import CurvatureReport, curvature
from flatminima.measure.eigen import top_eigenvalues
from flatminima.measure.gap import perturbation_gap
from flatminima.measure.layer_bound import LayerBound, layer_bound
from flatminima.measure.live import LiveTrace
from flatminima.measure.noise_stability import (
    NoiseStability,
    StabilityPoint,
    noise_stability,
    smoothed_curvature,
)
from flatminima.measure.operators import Dense, Hessian, Operator
from flatminima.measure.results import EigenEstimate, Estimate, TraceEstimate
from flatminima.measure.sharpness import Sharpness, average_sharpness, worst_case_sharpness
from flatminima.measure.stability import StabilityReport, dynamical_stability
from flatminima.measure.start_sigma import StartSigma, start_sigma
from flatminima.measure.thresholds import LinearSGD, Threshold
from flatminima.measure.trace import hessian_trace
from flatminima.progress import Progress

__all__ = [
    "CurvatureReport",
    "Dense",
    "EigenEstimate",
    "Estimate",
    "Hessian",
    "LayerBound",
    "LinearSGD",
    "LiveTrace",
    "NoiseStability",
    "Operator",
    "PacBayesBound",
    "Progress",
    "Sharpness",
    "SpectralCriteria",
    "StabilityPoint",
    "StabilityReport",
    "StartSigma",
    "Threshold",
    "TraceEstimate",
    "average_sharpness",
    "curvature",
    "dynamical_stability",
    "hessian_trace",
    "layer_bound",
    "noise_stability",
    "pac_bayes_bound",
    "perturbation_gap",
    "smoothed_curvature",
    "spectral_criteria",
    "start_sigma",
    "top_eigenvalues",
    "worst_case_sharpness",
]
