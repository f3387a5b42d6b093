"""The scores of tasks against those of torchmetrics, where it has them."""

import pytest
import torch
from torch import nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.regression import MeanAbsoluteError, SpearmanCorrCoef
from torchmetrics.retrieval import RetrievalHitRate

from flatminima.explain.meta_saliency import spearman
from flatminima.training.data.numbers import Scale
from flatminima.training.tasks import Regression
from flatminima.training.tasks.classification import Classification
from flatminima.training.tasks.contrastive import RANKS, recalls

CPU = torch.device("cpu")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(outputs, targets):
    parts = zip(outputs.split(7), targets.split(7), strict=True)
    return [{"inputs": x, "targets": y} for x, y in parts]


def test_accuracy_is_that_of_torchmetrics():
    outputs = drawn(40, 5)
    targets = drawn(40, 5, seed=1).argmax(1)
    found = Classification().score(nn.Identity(), batches(outputs, targets), CPU)
    theirs = MulticlassAccuracy(5, average="micro")(outputs, targets)
    assert found["accuracy"] == pytest.approx(theirs.item())


def test_the_mean_absolute_error_is_that_of_torchmetrics():
    outputs, targets = drawn(40), drawn(40, seed=1)
    task = Regression(Scale(mean=10.0, deviation=4.0))
    found = task.score(nn.Identity(), batches(outputs, targets), CPU)
    theirs = MeanAbsoluteError()(4 * outputs + 10, 4 * targets + 10)
    assert found["mae"] == pytest.approx(theirs.item(), rel=1e-6)


@pytest.mark.parametrize("k", RANKS)
def test_recall_is_the_hit_rate_of_torchmetrics_where_nothing_ties(k):
    images, texts = (nn.functional.normalize(drawn(30, 6, seed=s), dim=1) for s in (0, 1))
    found = recalls(images, texts, torch.arange(30)[:, None].expand(30, 2))
    similar, fits = images @ texts.T, torch.eye(30, dtype=torch.bool)
    query = torch.arange(30)[:, None].expand(30, 30).flatten()
    for way, matrix in (("image_to_text", similar), ("text_to_image", similar.T)):
        theirs = RetrievalHitRate(top_k=k)(matrix.flatten(), fits.flatten(), indexes=query)
        assert found[f"{way}_at_{k}"] == pytest.approx(theirs.item())


@pytest.mark.filterwarnings("ignore:Metric .*will save all targets")
def test_rank_correlations_are_those_of_torchmetrics():
    # Rounded, so that some values are equal.
    one, other = (drawn(6, 20, seed=s).round(decimals=1) for s in (0, 1))
    theirs = SpearmanCorrCoef(num_outputs=6)(one.T, other.T)
    torch.testing.assert_close(spearman(one, other), theirs.double(), rtol=1e-5, atol=1e-6)
