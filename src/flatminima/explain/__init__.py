"""What a trained model looks at, and how it can be fooled."""

from flatminima.explain.cards import CARDS
from flatminima.explain.estimators import (
    LinearScores,
    TiltPath,
    linear_scores,
    tilt_estimator,
    tilt_path,
)
from flatminima.explain.heads import Head, local_distance, read_head, tilt_head
from flatminima.explain.layers import default_layers
from flatminima.explain.meta_saliency import class_sensitivity, meta_saliency
from flatminima.explain.norm_grad import METHODS, NormGrad, norm_grad
from flatminima.explain.picture import overlay, saliency_plot
from flatminima.explain.tilting import (
    TiltReport,
    mirror,
    nearest_centroid,
    projected,
    signed_distance,
    tilt,
    tilt_report,
)
from flatminima.explain.tilting_pairs import PairTilts, class_means, tilt_pairs
from flatminima.explain.tilting_plane import TiltingPlane, tilting_plane

__all__ = [
    "CARDS",
    "METHODS",
    "Head",
    "LinearScores",
    "NormGrad",
    "PairTilts",
    "TiltPath",
    "TiltReport",
    "TiltingPlane",
    "class_means",
    "class_sensitivity",
    "default_layers",
    "linear_scores",
    "local_distance",
    "meta_saliency",
    "mirror",
    "nearest_centroid",
    "norm_grad",
    "overlay",
    "projected",
    "read_head",
    "saliency_plot",
    "signed_distance",
    "tilt",
    "tilt_estimator",
    "tilt_head",
    "tilt_pairs",
    "tilt_path",
    "tilt_report",
    "tilting_plane",
]
