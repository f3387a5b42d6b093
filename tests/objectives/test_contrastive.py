"""The contrastive loss against its equation, and on two processes against one."""

import math
import socket
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributed, multiprocessing, nn

from flatminima.errors import InputError
from flatminima.measure import Hessian
from flatminima.objectives import Contrastive, make_objective

N, D = 5, 4


class Dual(nn.Module):
    """Two linear encoders, whose features are no unit vectors yet."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(3, D), nn.Linear(2, D)
        self.logit_scale = nn.Parameter(torch.tensor(0.7))
        self.double()

    def forward(self, pixel_values, input_ids):
        return SimpleNamespace(
            image_embeds=self.image(pixel_values), text_embeds=self.text(input_ids).tanh()
        )


def batch(n=N, seed=1):
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(n, k, dtype=torch.float64, generator=generator) for k in (3, 2)]
    inputs = {"pixel_values": draw[0], "input_ids": draw[1]}
    return {"inputs": inputs, "targets": torch.zeros(n, dtype=torch.int64)}


def slow(model, batch):
    """The equation, sample by sample."""
    outputs = model(**batch["inputs"])
    a, b = (x / x.norm(dim=1, keepdim=True) for x in vars(outputs).values())
    s, total = model.logit_scale.exp(), 0.0
    for i in range(len(a)):
        fits = torch.exp(s * a[i] @ b[i])
        texts = sum(torch.exp(s * a[i] @ b[j]) for j in range(len(a)))
        images = sum(torch.exp(s * a[j] @ b[i]) for j in range(len(a)))
        total = total - (fits / texts).log() - (fits / images).log()
    return total / (2 * len(a))


def test_it_is_its_equation():
    model = Dual()
    torch.testing.assert_close(Contrastive()(model, batch()), slow(model, batch()))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), s=st.floats(0.1, 30))
def test_features_that_tell_nothing_cost_log_n_and_perfect_ones_almost_nothing(n, s):
    scale, eye = torch.tensor(s, dtype=torch.float64), torch.eye(n, dtype=torch.float64)
    same = torch.ones(n, 1, dtype=torch.float64)
    assert Contrastive().of(same, same, scale).item() == pytest.approx(math.log(n))
    perfect = math.log(1 + (n - 1) * math.exp(-s))
    assert Contrastive().of(eye, eye, scale).item() == pytest.approx(perfect, abs=1e-12)


def test_images_and_texts_may_change_places():
    a, b = (nn.functional.normalize(torch.randn(N, D), dim=1) for _ in range(2))
    scale, loss = torch.tensor(3.0), Contrastive()
    torch.testing.assert_close(loss.of(a, b, scale), loss.of(b, a, scale))


def test_the_scale_is_held():
    a, b = (nn.functional.normalize(torch.randn(N, D), dim=1) for _ in range(2))
    held = Contrastive(most_scale=2.0).of(a, b, torch.tensor(50.0))
    torch.testing.assert_close(held, Contrastive().of(a, b, torch.tensor(2.0)))


def test_the_hessian_is_that_of_the_mean_of_batch_losses_as_they_are_cut():
    model, parts = Dual(), [batch(4, 1), batch(2, 2), batch(3, 3)]
    params = list(model.parameters())
    loss = sum(len(p["targets"]) * slow(model, p) for p in parts) / 9
    gradient = torch.cat(
        [g.flatten() for g in torch.autograd.grad(loss, params, create_graph=True)]
    )
    rows = [
        torch.cat([r.flatten() for r in torch.autograd.grad(g, params, retain_graph=True)])
        for g in gradient
    ]
    operator = Hessian(model, Contrastive(gather=False), parts)
    identity = torch.eye(len(rows), dtype=torch.float64)
    torch.testing.assert_close(operator.matmat(identity), torch.stack(rows))
    # Of batches cut another way it is another matrix: the loss is no mean over samples.
    keys = ("pixel_values", "input_ids")
    whole = {k: torch.cat([p["inputs"][k] for p in parts]) for k in keys}
    together = [{"inputs": whole, "targets": torch.zeros(9, dtype=torch.int64)}]
    other = Hessian(model, Contrastive(gather=False), together).matmat(identity)
    assert not torch.allclose(other, torch.stack(rows), rtol=0.01)


SHARES = (slice(0, 3), slice(3, 5))


def on_a_rank(rank, port, found):
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
    )
    model, own = Dual(), SHARES[rank]
    inputs = {name: part[own] for name, part in batch()["inputs"].items()}
    loss = Contrastive()(model, {"inputs": inputs})
    # As the training loop counts a share of the samples before processes average.
    (loss * (len(inputs["input_ids"]) * 2 / N)).backward()
    gradients = [parameter.grad / 2 for parameter in model.parameters()]
    for gradient in gradients:
        distributed.all_reduce(gradient)
    alone = Contrastive(gather=False)(model, {"inputs": inputs})
    distributed.destroy_process_group()
    found[rank] = (loss.item(), alone.item(), [gradient.tolist() for gradient in gradients])


def test_two_processes_with_unequal_shares_do_what_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with multiprocessing.get_context("spawn").Manager() as manager:
        found = manager.dict()
        multiprocessing.spawn(on_a_rank, (port, found), nprocs=2)
        (first, alone, gradients), (second, _, others) = found[0], found[1]
    model = Dual()
    loss = Contrastive()(model, batch())
    loss.backward()
    assert (3 * first + 2 * second) / N == pytest.approx(loss.item())
    assert gradients == others
    assert alone < first
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(gradient, dtype=torch.float64), parameter.grad)


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (Dual(), (torch.ones(2, 3), torch.ones(2)), "images with texts are a mapping"),
        (nn.Identity(), {"inputs": {"input": torch.ones(2)}}, "without image_embeds"),
    ],
)
def test_models_and_batches_that_do_not_fit(model, given, words):
    with pytest.raises(InputError, match=words):
        Contrastive()(model, given)


def test_a_model_without_a_scale():
    model = Dual()
    del model.logit_scale
    with pytest.raises(InputError, match="no parameter logit_scale"):
        Contrastive()(model, batch())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gather": 1}, "gather is 1: give true or false"),
        ({"most_scale": 0}, "most_scale is 0"),
        ({"scale": 2}, "did you mean 'most_scale'"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(InputError, match=words):
        make_objective("contrastive", **options)
