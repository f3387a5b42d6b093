"""Lightning: our optimizer out of `configure_optimizers`."""

import logging
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import flatminima

from .cases import assert_same_bits, counting, state_of

METHODS = {
    "plain": flatminima.Plain,
    "nso": lambda base: flatminima.NSO(base, sigma=0.1, seed=0),
    "nso-alternate": lambda base: flatminima.NSO(base, sigma=0.1, signs="alternate", seed=0),
    "sam": lambda base: flatminima.SAM(base, rho=0.1),
    "gsam": lambda base: flatminima.GSAM(base, rho=0.1),
    "looksam": lambda base: flatminima.LookSAM(base, rho=0.1, k=2),
}
NSO = METHODS["nso"]


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(32, 4, generator=g), torch.randint(0, 3, (32,), generator=g)


def loader():
    return DataLoader(TensorDataset(*data()), batch_size=8)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3))


class Automatic(lightning.LightningModule):
    """What a user of Lightning has, with our optimizer."""

    def __init__(self, wrap, seed=0):
        super().__init__()
        self.net = network(seed)
        self.wrap = wrap

    def training_step(self, batch, index):
        x, y = batch
        loss = cross_entropy(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        self.ours = self.wrap(base(self.parameters()))
        schedule = torch.optim.lr_scheduler.StepLR(self.ours, 2, gamma=0.5)
        return {"optimizer": self.ours, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Manual(Automatic):
    """Accumulation, clipping and halves of the batch, which need manual optimization."""

    def __init__(self, wrap, accumulate=2, clip=0.0):
        super().__init__(wrap)
        self.automatic_optimization = False
        self.accumulate, self.clip = accumulate, clip

    def training_step(self, batch, index):
        optimizer = self.optimizers()
        for x, y in optimizer.optimizer.passes(*batch):
            self.manual_backward(cross_entropy(self.net(x), y) / self.accumulate)
        if (index + 1) % self.accumulate == 0:
            if self.clip:
                self.clip_gradients(optimizer, self.clip, "norm")
            optimizer.step()
            optimizer.zero_grad()
            self.lr_schedulers().step()


def base(parameters):
    return torch.optim.AdamW(parameters, lr=0.05)


def fit(module, path=None, **options):
    trainer = lightning.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": any(
                isinstance(c, ModelCheckpoint) for c in options.get("callbacks", [])
            ),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            **options,
        }
    )
    trainer.fit(module, loader(), ckpt_path=path)
    return trainer


def by_hand(wrap, epochs=2, bf16=False, clip=0.0, accumulate=1):
    """What the trainer does, written out."""
    net = network()
    optimizer = wrap(base(net.parameters()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for _ in range(epochs):
        for index, (x, y) in enumerate(loader()):
            for x_, y_ in optimizer.passes(x, y):
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = cross_entropy(net(x_), y_)
                (loss / accumulate).backward()
            if (index + 1) % accumulate == 0:
                if clip:
                    nn.utils.clip_grad_norm_(net.parameters(), clip)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
    return net


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", METHODS)
def test_automatic_optimization_equals_a_loop_by_hand(name, bf16):
    module = Automatic(METHODS[name])
    trainer = fit(module, precision="bf16-mixed" if bf16 else "32-true")
    assert trainer.global_step == module.ours.steps == 8
    assert_same_bits(state_of(module.net), state_of(by_hand(METHODS[name], bf16=bf16)))


@pytest.mark.parametrize(("name", "passes"), [("plain", 1), ("nso", 2), ("sam", 2)])
def test_forwards_and_backwards_are_those_of_the_method(name, passes):
    module = Automatic(METHODS[name])
    with counting(module.net) as count:
        fit(module)
    assert count.forwards == count.backwards == 8 * passes


def test_saved_and_resumed_it_goes_on_bit_for_bit(tmp_path):
    for name, wrap in METHODS.items():
        whole = Automatic(wrap)
        saving = ModelCheckpoint(tmp_path / name, every_n_epochs=1, save_top_k=-1)
        fit(whole, max_epochs=4, callbacks=[saving])
        (half,) = (tmp_path / name).glob("epoch=1-*.ckpt")
        resumed = Automatic(wrap, seed=1)
        trainer = fit(resumed, half, max_epochs=4)
        assert_same_bits(state_of(resumed.net), state_of(whole.net))
        assert trainer.global_step == resumed.ours.steps == 16


def test_weight_averaging_leaves_the_average_and_its_statistics():
    module = Automatic(NSO)
    averaging = StochasticWeightAveraging(1e-2, swa_epoch_start=2)
    fit(module, max_epochs=4, callbacks=[averaging])
    average = averaging._average_model.net
    for ours, theirs in zip(module.net.parameters(), average.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    normalized = module.net[1]
    assert normalized.num_batches_tracked == 4
    exact = network()
    exact.load_state_dict(module.net.state_dict())
    with torch.no_grad():
        inputs = exact[0](data()[0])
    torch.testing.assert_close(normalized.running_mean, inputs.mean(0), rtol=0, atol=1e-2)


def test_gradient_clip_val_clips_the_gradient_of_each_pass():
    module = Automatic(NSO)
    fit(module, gradient_clip_val=0.3)
    net = network()
    optimizer = NSO(base(net.parameters()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for _ in range(2):
        for x, y in loader():

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = cross_entropy(net(x), y)
                loss.backward()
                nn.utils.clip_grad_norm_(net.parameters(), 0.3)
                return loss

            optimizer.step(closure)
            schedule.step()
    assert_same_bits(state_of(module.net), state_of(net))
    assert not torch.equal(module.net[0].weight, by_hand(NSO, clip=0.3)[0].weight)


def test_max_grad_norm_clips_the_gradient_of_the_step():
    module = Automatic(lambda base: flatminima.NSO(base, sigma=0.1, seed=0, max_grad_norm=0.3))
    fit(module)
    torch.testing.assert_close(state_of(module.net), state_of(by_hand(NSO, clip=0.3)))


def test_accumulate_grad_batches_is_refused_with_the_mend():
    with pytest.raises(flatminima.InputError, match="in Lightning, instead of accumulate_grad"):
        fit(Automatic(NSO), accumulate_grad_batches=2)


def scaled():
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))


def test_fp16_with_automatic_optimization_is_refused_with_the_mend():
    with pytest.raises(RuntimeError, match="needs manual optimization"):
        fit(Automatic(NSO), plugins=[scaled()])


@pytest.mark.parametrize("clip", [0.0, 0.3])
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("signs", ["paired", "split"])
def test_manual_optimization_accumulates_clips_and_cuts_batches(signs, accumulate, clip):
    def wrap(base):
        return flatminima.NSO(base, sigma=0.1, signs=signs, seed=0)

    module = Manual(wrap, accumulate, clip)
    with counting(module.net) as count:
        trainer = fit(module)
    assert trainer.global_step == module.ours.steps == 8 / accumulate
    assert count.forwards == count.backwards == 16
    assert sum(count.samples) == 64 * (2 if signs == "paired" else 1)
    theirs = by_hand(wrap, clip=clip, accumulate=accumulate)
    assert_same_bits(state_of(module.net), state_of(theirs))


def test_manual_optimization_in_fp16_equals_a_loop_with_a_scaler():
    module = Manual(NSO, accumulate=1)
    fit(module, plugins=[scaled()])
    net, scaler = network(), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = NSO(base(net.parameters()))
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
    for _ in range(2):
        for x, y in loader():
            for _ in optimizer.passes():
                with torch.autocast("cpu", torch.float16):
                    loss = cross_entropy(net(x), y)
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            schedule.step()
    assert optimizer.steps == module.ours.steps == 8
    assert_same_bits(state_of(module.net), state_of(net))


def test_passes_of_lightnings_wrapper_are_refused():
    class Imitated(Manual):
        def training_step(self, batch, index):
            for x, y in self.optimizers().passes(*batch):
                self.manual_backward(cross_entropy(self.net(x), y))

    with pytest.raises(flatminima.InputError, match=r"optimizers\(\)\.optimizer\.passes"):
        fit(Imitated(NSO))


def test_manual_optimization_without_passes_is_refused_with_the_mend():
    class Forgotten(Manual):
        def training_step(self, batch, index):
            x, y = batch
            self.manual_backward(cross_entropy(self.net(x), y))
            self.optimizers().step()

    with pytest.raises(flatminima.InputError, match=r"for x_, y_ in optimizer\.passes"):
        fit(Forgotten(NSO))
