"""Learned proximal networks: denoisers that are proximal operators, and what they are for."""

from flatminima.models.learned_proximal.inversion import Prior
from flatminima.models.learned_proximal.matching import ProximalMatching, Stage, proximal_schedule
from flatminima.models.learned_proximal.networks import LPN, ConvLPN, PatchLPN
from flatminima.models.learned_proximal.operators import (
    LinearMap,
    blurring,
    identity,
    masking,
    sensing,
)
from flatminima.models.learned_proximal.plug_and_play import Restored, pnp_admm, pnp_hqs, pnp_pgd
from flatminima.models.learned_proximal.proximal import LearnedProximal
from flatminima.models.learned_proximal.training import Fitted, fit_lpn

__all__ = [
    "LPN",
    "ConvLPN",
    "Fitted",
    "LearnedProximal",
    "LinearMap",
    "PatchLPN",
    "Prior",
    "ProximalMatching",
    "Restored",
    "Stage",
    "blurring",
    "fit_lpn",
    "identity",
    "masking",
    "pnp_admm",
    "pnp_hqs",
    "pnp_pgd",
    "proximal_schedule",
    "sensing",
]
