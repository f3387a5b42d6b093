"""Training into flat minima with Noise Stability Optimization, and measuring what it did.

    optimizer = flatminima.NSO(torch.optim.AdamW(model.parameters(), lr=1e-4), sigma=0.01)

    for _ in optimizer.passes():
        loss_fn(model(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()

The names below are imported when they are first used, so that the command line starts quickly.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flatminima.errors import InputError
    from flatminima.measure import (
        CurvatureReport,
        EmpiricalFisher,
        Estimate,
        GaussNewton,
        Hessian,
        LayerBound,
        LinearSGD,
        LiveTrace,
        MonteCarloFisher,
        NoiseStability,
        PacBayesBound,
        Sharpness,
        SpectralCriteria,
        SpectralDensity,
        StabilityReport,
        StartSigma,
        average_sharpness,
        curvature,
        dynamical_stability,
        hessian_diagonal,
        hessian_trace,
        layer_bound,
        noise_stability,
        pac_bayes_bound,
        perturbation_gap,
        smoothed_curvature,
        spectral_criteria,
        spectral_density,
        squared_frobenius_norm,
        start_sigma,
        top_eigenvalues,
        worst_case_sharpness,
    )
    from flatminima.objectives import (
        ELR,
        PSKD,
        AbsoluteError,
        BackwardCorrection,
        CrossEntropy,
        CutMix,
        ELRLoss,
        ELRPlus,
        GradientNorm,
        LabelSmoothing,
        Mixup,
        PSKDLoss,
        Remembering,
        SquaredError,
        Supervised,
        TracePenalty,
    )
    from flatminima.optim import GNS, VariationalAdam
    from flatminima.perturb import (
        ASAM,
        BSAM,
        GLAD,
        GSAM,
        MSAM,
        NSO,
        RSAM,
        SAM,
        USAM,
        Card,
        FriendlySAM,
        LookSAM,
        Pass,
        Perturbed,
        Plain,
        Turn,
        cards,
        make,
        register,
        schedules,
    )
    from flatminima.reparam import (
        DistanceConstraint,
        DistancePenalty,
        LoRA,
        WeightCompander,
        bake_,
        compand_,
    )

__version__ = "0.1.0"

__all__ = [
    "ASAM",
    "BSAM",
    "ELR",
    "GLAD",
    "GNS",
    "GSAM",
    "MSAM",
    "NSO",
    "PSKD",
    "RSAM",
    "SAM",
    "USAM",
    "AbsoluteError",
    "BackwardCorrection",
    "Card",
    "CrossEntropy",
    "CurvatureReport",
    "CutMix",
    "DistanceConstraint",
    "DistancePenalty",
    "ELRLoss",
    "ELRPlus",
    "EmpiricalFisher",
    "Estimate",
    "FriendlySAM",
    "GaussNewton",
    "GradientNorm",
    "Hessian",
    "InputError",
    "LabelSmoothing",
    "LayerBound",
    "LinearSGD",
    "LiveTrace",
    "LoRA",
    "LookSAM",
    "Mixup",
    "MonteCarloFisher",
    "NoiseStability",
    "PSKDLoss",
    "PacBayesBound",
    "Pass",
    "Perturbed",
    "Plain",
    "Remembering",
    "Sharpness",
    "SpectralCriteria",
    "SpectralDensity",
    "SquaredError",
    "StabilityReport",
    "StartSigma",
    "Supervised",
    "TracePenalty",
    "Turn",
    "VariationalAdam",
    "WeightCompander",
    "average_sharpness",
    "bake_",
    "cards",
    "compand_",
    "curvature",
    "dynamical_stability",
    "hessian_diagonal",
    "hessian_trace",
    "layer_bound",
    "make",
    "noise_stability",
    "pac_bayes_bound",
    "perturbation_gap",
    "register",
    "schedules",
    "smoothed_curvature",
    "spectral_criteria",
    "spectral_density",
    "squared_frobenius_norm",
    "start_sigma",
    "top_eigenvalues",
    "worst_case_sharpness",
]

_HOMES = {
    "flatminima.errors": {"InputError"},
    "flatminima.measure": {
        "CurvatureReport",
        "EmpiricalFisher",
        "Estimate",
        "GaussNewton",
        "Hessian",
        "LayerBound",
        "LinearSGD",
        "LiveTrace",
        "MonteCarloFisher",
        "NoiseStability",
        "PacBayesBound",
        "Sharpness",
        "SpectralCriteria",
        "SpectralDensity",
        "StabilityReport",
        "StartSigma",
        "average_sharpness",
        "curvature",
        "dynamical_stability",
        "hessian_diagonal",
        "hessian_trace",
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
    },
    "flatminima.reparam": {
        "DistanceConstraint",
        "DistancePenalty",
        "LoRA",
        "WeightCompander",
        "bake_",
        "compand_",
    },
    "flatminima.objectives": {
        "ELR",
        "PSKD",
        "AbsoluteError",
        "BackwardCorrection",
        "CrossEntropy",
        "CutMix",
        "ELRLoss",
        "ELRPlus",
        "GradientNorm",
        "LabelSmoothing",
        "Mixup",
        "PSKDLoss",
        "Remembering",
        "SquaredError",
        "Supervised",
        "TracePenalty",
    },
    "flatminima.optim": {"GNS", "VariationalAdam"},
}
"""Where a public name lives; in `flatminima.perturb` if it is not here."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = next((home for home, names in _HOMES.items() if name in names), "flatminima.perturb")
    value = globals()[name] = getattr(importlib.import_module(home), name)
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
