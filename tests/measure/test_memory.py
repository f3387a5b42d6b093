"""What does not fit is refused with numbers before it is tried."""

import pytest
import torch
from torch import nn

from flatminima.errors import InputError
from flatminima.measure import Hessian, memory, over_batches
from flatminima.measure.memory import SavedBytes, free_bytes

from .cases import cross_entropy, mlp

KIB = 1024


def wide(samples=4000):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 50), nn.Tanh(), nn.Linear(50, 2))
    return model, (torch.randn(samples, 4), torch.arange(samples) % 2)


def test_what_the_forward_pass_keeps_is_counted_once():
    model, batch = wide()
    with SavedBytes(model.parameters()) as saved:
        hidden = model[:2](batch[0])
    # The input, and the output of tanh that tanh keeps.
    assert saved.bytes == 4 * 4000 * (4 + 50)
    with SavedBytes(model.parameters()) as saved:
        model[2](hidden.detach())
    assert saved.bytes == 4 * 4000 * 50


def test_counting_leaves_no_graph_behind_and_derivatives_work_under_it():
    x = torch.ones(3, requires_grad=True)
    with SavedBytes([]):
        (g,) = torch.autograd.grad(x.exp().sum(), x, create_graph=True)
        (gg,) = torch.autograd.grad(g.sum(), x)
    assert torch.allclose(gg, torch.ones(3).exp())


def test_the_machine_says_what_is_free():
    free = free_bytes(torch.device("cpu"))
    assert free is None or 0 < free < 2**50


@pytest.mark.parametrize("limit", ["max", "1000000"])
def test_a_containers_limit_counts(limit, monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "GROUP", tmp_path)
    monkeypatch.setattr(memory, "_available", lambda: 10**9)
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\n")
    assert free_bytes(torch.device("cpu")) == (10**9 if limit == "max" else 500_000)


@pytest.mark.parametrize("backend", ["auto", "autograd", "forward"])
def test_a_batch_too_large_is_refused_in_numbers_and_the_mend_works(backend, monkeypatch):
    model, batch = wide()
    kept = 4 * 4000 * (4 + 50)
    monkeypatch.setattr(over_batches, "free_bytes", lambda device: 2 * kept)
    operator = Hessian(model, cross_entropy, [batch], backend=backend)
    message = r"needs at least 2\.\d\d MiB of memory on cpu, and 1\.\d\d MiB are free: .* smaller"
    with pytest.raises(InputError, match=message):
        operator.matmat(torch.ones(operator.shape[0], 1))
    Hessian(model, cross_entropy, [batch], backend="differences").matmat(
        torch.ones(operator.shape[0], 1)
    )
    parts = list(zip(*(part.split(400) for part in batch), strict=True))
    Hessian(model, cross_entropy, parts, backend=backend).matmat(torch.ones(operator.shape[0], 1))


def test_a_pass_is_stopped_before_it_fills_the_memory(monkeypatch):
    layers = []

    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(50, 50)

        def forward(self, x):
            for i in range(100):
                layers.append(i)
                x = self.layer(x).tanh()
            return x

    torch.manual_seed(0)
    batch = (torch.randn(1000, 50), torch.arange(1000) % 50)
    monkeypatch.setattr(over_batches, "free_bytes", lambda device: 2**22)
    with pytest.raises(InputError, match="needs at least"):
        Hessian(Deep(), cross_entropy, [batch]).matmat(torch.ones(2550, 1))
    assert max(layers) < 10


def test_too_many_vectors_at_once_are_refused_also_later(monkeypatch):
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, [batch])
    monkeypatch.setattr(over_batches, "free_bytes", lambda device: 64 * KIB)
    operator.matmat(torch.ones(57, 1))
    with pytest.raises(InputError, match=r"are free: 224 KiB for the vectors, .* fewer vectors"):
        operator.matmat(torch.ones(57, 500))
    operator.matmat(torch.ones(57, 2))


def test_fewer_products_run_at_once_where_memory_is_short(monkeypatch):
    model, batch = wide()
    n = sum(p.numel() for p in model.parameters())
    v = torch.randn(n, 20)
    plenty = Hessian(model, cross_entropy, [batch], chunk=20)
    expected = plenty.matmat(v)
    assert plenty._chunk == 20
    monkeypatch.setattr(over_batches, "free_bytes", lambda device: 8 * 4 * 4000 * 54)
    short = Hessian(model, cross_entropy, [batch], chunk=20)
    assert torch.allclose(short.matmat(v), expected, rtol=1e-4, atol=1e-6)
    assert 1 <= short._chunk < 8


@pytest.mark.parametrize(
    ("size", "said"),
    [(10, "10 bytes"), (2048, "2 KiB"), (3.5 * 2**20, "3.5 MiB"), (2e12, "1862.6 GiB")],
)
def test_sizes_are_readable(size, said):
    assert memory.words(size) == said
