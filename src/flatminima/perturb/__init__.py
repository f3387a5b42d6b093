"""Where the gradient is taken: the pass engine, and one file per method."""

from flatminima.cards import Card
from flatminima.perturb import schedules
from flatminima.perturb.asam import ASAM
from flatminima.perturb.bsam import BSAM
from flatminima.perturb.cards import card, cards, make, options, refused, register
from flatminima.perturb.engine import Perturbed
from flatminima.perturb.friendly_sam import FriendlySAM
from flatminima.perturb.glad import GLAD
from flatminima.perturb.gradients import Gradients, global_norm
from flatminima.perturb.gsam import GSAM
from flatminima.perturb.looksam import LookSAM
from flatminima.perturb.m_sam import MSAM
from flatminima.perturb.noise import DISTRIBUTIONS, Noise, Stream
from flatminima.perturb.nso import NSO
from flatminima.perturb.plain import Plain
from flatminima.perturb.plans import Pass, Turn
from flatminima.perturb.rsam import RSAM
from flatminima.perturb.sam import SAM, USAM
from flatminima.perturb.weights import Weights

__all__ = [
    "ASAM",
    "BSAM",
    "DISTRIBUTIONS",
    "GLAD",
    "GSAM",
    "MSAM",
    "NSO",
    "RSAM",
    "SAM",
    "USAM",
    "Card",
    "FriendlySAM",
    "Gradients",
    "LookSAM",
    "Noise",
    "Pass",
    "Perturbed",
    "Plain",
    "Stream",
    "Turn",
    "Weights",
    "card",
    "cards",
    "global_norm",
    "make",
    "options",
    "refused",
    "register",
    "schedules",
]
