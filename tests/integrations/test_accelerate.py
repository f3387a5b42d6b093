"""accelerate: a prepared optimizer of ours."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import flatminima

from .cases import assert_same_bits, counting, state_of

METHODS = {
    "plain": flatminima.Plain,
    "nso": lambda base: flatminima.NSO(base, sigma=0.1, seed=0),
    "nso-one-pass": lambda base: flatminima.NSO(base, sigma=0.1, signs="split", seed=0),
    "sam": lambda base: flatminima.SAM(base, rho=0.1),
    "looksam": lambda base: flatminima.LookSAM(base, rho=0.1, k=2),
}


@pytest.fixture(autouse=True)
def _fresh_accelerator():
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


def loader():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, 4, generator=g), torch.randint(0, 3, (64,), generator=g)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.2), nn.Linear(6, 3))


class Run:
    """A loop of an accelerate user, with micro-batches, clipping and a schedule."""

    def __init__(self, wrap, seed=0, accumulate=2, precision="no"):
        self.accelerator = Accelerator(
            cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision
        )
        self.net = network(seed)
        self.perturbed = wrap(torch.optim.AdamW(self.net.parameters(), lr=0.05))
        self.model, self.optimizer, self.loader, self.schedule = self.accelerator.prepare(
            self.net,
            self.perturbed,
            loader(),
            torch.optim.lr_scheduler.StepLR(self.perturbed, 2, gamma=0.5),
        )
        torch.manual_seed(1)

    def epoch(self):
        accelerator, model, perturbed = self.accelerator, self.model, self.perturbed
        for x, y in self.loader:
            with accelerator.accumulate(model):
                for x_, y_ in perturbed.passes(x, y):
                    with perturbed.synchronizing(model):
                        accelerator.backward(cross_entropy(model(x_), y_))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.3)
                self.optimizer.step()
                self.schedule.step()
                self.optimizer.zero_grad()


def by_hand(wrap, accumulate=2, bf16=False):
    net = network()
    optimizer = wrap(torch.optim.AdamW(net.parameters(), lr=0.05))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    torch.manual_seed(1)
    torch.empty((), dtype=torch.int64).random_()  # what the loader draws its base seed with
    for index, (x, y) in enumerate(DataLoader(loader().dataset, 8, generator=torch.Generator())):
        for x_, y_ in optimizer.passes(x, y):
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = cross_entropy(net(x_), y_)
            (loss / accumulate).backward()
        if (index + 1) % accumulate == 0:
            nn.utils.clip_grad_norm_(net.parameters(), 0.3)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return net


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", METHODS)
def test_a_prepared_optimizer_equals_a_loop_by_hand(name, accumulate):
    run = Run(METHODS[name], accumulate=accumulate)
    assert run.optimizer.optimizer is run.perturbed
    run.epoch()
    assert run.perturbed.steps == 8 // accumulate
    assert_same_bits(state_of(run.net), state_of(by_hand(METHODS[name], accumulate)))


@pytest.mark.parametrize(
    ("name", "passes", "gradients"),
    [("plain", 1, 1), ("nso", 2, 2), ("nso-one-pass", 2, 1), ("sam", 2, 2)],
)
def test_forwards_and_backwards_are_those_of_the_method(name, passes, gradients):
    run = Run(METHODS[name])
    with counting(run.net) as count:
        run.epoch()
    assert count.forwards == count.backwards == passes * 8
    assert sum(count.samples) == gradients * 64


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_save_state_and_load_state_resume_bit_for_bit(tmp_path, name, precision):
    run = Run(METHODS[name], precision=precision)
    run.epoch()
    run.accelerator.save_state(tmp_path)
    run.epoch()
    AcceleratorState._reset_state(True)
    resumed = Run(METHODS[name], seed=1, precision=precision)
    resumed.accelerator.load_state(tmp_path)
    resumed.epoch()
    assert_same_bits(state_of(resumed.net), state_of(run.net))
    assert resumed.perturbed.steps == run.perturbed.steps == 8


@pytest.mark.parametrize("name", ["nso", "sam"])
def test_a_closure_works_where_there_is_no_scaler(name):
    run, (x, y) = Run(METHODS[name], accumulate=1), next(iter(loader()))
    with counting(run.net) as count:

        def closure():
            run.optimizer.zero_grad()
            loss = cross_entropy(run.model(x), y)
            run.accelerator.backward(loss)
            return loss

        run.optimizer.step(closure)
    assert count.forwards == count.backwards == 2
    assert run.perturbed.steps == 1


def test_a_closure_behind_a_scaler_is_refused_with_the_mend():
    """accelerate hands it to the scaler by position, where torch does not see it."""
    net, (x, y) = network(), next(iter(loader()))
    before = state_of(net)
    scaler = torch.amp.GradScaler("cpu")
    Accelerator(cpu=True)
    optimizer = AcceleratedOptimizer(
        METHODS["nso"](torch.optim.SGD(net.parameters(), lr=0.1)), scaler=scaler
    )

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(net(x), y)
        scaler.scale(loss).backward()
        return loss

    closure()  # the scaler wants to have seen gradients
    with pytest.raises(flatminima.InputError, match=r"with accelerate: accelerator\.backward"):
        optimizer.step(closure)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name])


def test_without_a_closure_a_scaler_unscales_what_the_passes_gathered():
    nets = [network(), network()]
    x, y = next(iter(loader()))
    for net, scaled in zip(nets, (True, False), strict=True):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        Accelerator(cpu=True)
        ours = METHODS["nso"](torch.optim.SGD(net.parameters(), lr=0.1))
        optimizer = AcceleratedOptimizer(ours, scaler=scaler)
        torch.manual_seed(1)
        for _ in ours.passes():
            scaler.scale(cross_entropy(net(x), y)).backward()
        optimizer.step()
        assert ours.steps == 1
    for ours, theirs in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_step_without_passes_shows_the_four_lines():
    run = Run(METHODS["nso"], accumulate=1)
    x, y = next(iter(loader()))
    run.accelerator.backward(cross_entropy(run.model(x), y))
    with pytest.raises(RuntimeError, match=r"for _ in optimizer\.passes\(\)"):
        run.optimizer.step()
