"""No step makes the host wait for the device: nothing in it reads a number, or moves a tensor."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flatminima.perturb import NSO

from .cases import batch, sgd, stateful, train

pytestmark = [
    pytest.mark.filterwarnings("ignore:signs='split' gathered"),
    pytest.mark.filterwarnings("ignore:m-SAM was given no batch"),
]

READS = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "item")
LAUNCH_NOTHING = ("empty", "empty_like", "promote_types", "detach", "view", "alias")


class Listener(TorchDispatchMode):
    """Notes every operator that would wait for a GPU: those that hand numbers to the host."""

    def __init__(self):
        super().__init__()
        self.heard = []
        self.launched = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        moved = name == "_to_copy" and (kwargs or {}).get("device") is not None
        self.launched += name not in LAUNCH_NOTHING
        if name in READS or moved:
            self.heard.append(name)
        return function(*args, **(kwargs or {}))


def listened(variant, **options):
    """What a second step reads, its forward and backward included."""
    model = stateful()
    optimizer = variant.wrap(sgd(model.parameters()), **options)
    train(optimizer, model, [batch()])
    with Listener() as listener:
        train(optimizer, model, [batch(seed=1)])
    return listener


def test_the_listener_hears_what_is_read():
    x = torch.ones(2)
    for read in (lambda: x.sum().item(), lambda: bool(x.sum() > 0), lambda: torch.equal(x, x)):
        with Listener() as listener:
            read()
        assert listener.heard


def test_no_number_is_read_in_a_step(variant, monkeypatch):
    monkeypatch.setattr("flatminima.perturb.nso.in_pieces", lambda *_: False)  # as on a GPU
    assert listened(variant).heard == []


def test_none_is_read_where_gradients_are_clipped(variant):
    assert listened(variant, max_grad_norm=0.1).heard == []


def test_moving_many_small_tensors_takes_two_kernels_each_and_few_more(monkeypatch):
    """On a GPU a launch is what a small tensor costs: one to draw it, one to scale it."""
    monkeypatch.setattr("flatminima.perturb.nso.in_pieces", lambda *_: False)
    parameters = [torch.nn.Parameter(torch.zeros(10)) for _ in range(100)]
    optimizer = NSO(torch.optim.SGD(parameters, lr=0.0), sigma=0.1)
    with Listener() as listener:
        for _ in optimizer.passes():
            pass
    # Besides the copy of W, the move, the mirroring and the way home.
    assert listener.launched <= 2 * len(parameters) + 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_waits(variant):
    model = stateful().cuda()
    optimizer = variant.wrap(sgd(model.parameters()))
    data = [tuple(part.cuda() for part in batch(seed=seed)) for seed in range(3)]
    train(optimizer, model, data[:1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(optimizer, model, data[1:])
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("noise", ["normal", "table"])
def test_on_a_gpu_weights_come_home_bit_for_bit(noise):
    model = stateful().cuda()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = NSO(sgd(model.parameters(), lr=0.0), sigma=0.1, noise=noise)
    train(optimizer, model, [tuple(part.cuda() for part in batch())])
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_no_step_holds_more_than_one_copy_of_the_weights():
    model = torch.nn.Sequential(*(torch.nn.Linear(512, 512, bias=False) for _ in range(16))).cuda()
    size = sum(4 * p.numel() for p in model.parameters())
    optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=0.1)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in optimizer.passes():
        pass
    # And the noise of a few tensors that are moved together.
    assert torch.cuda.max_memory_allocated() - before <= 1.6 * size
