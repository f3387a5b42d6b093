"""What every method promises; methods enter by being registered."""

import copy
import pickle
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules import module as torch_module

from flatminima.errors import InputError
from flatminima.perturb import card

from .cases import (
    DOUBLE,
    adamw,
    assert_same_bits,
    batch,
    copies,
    sgd,
    smooth,
    state_of,
    stateful,
    takes_closure,
    through_a_file,
    train,
    train_bare,
    variational,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:signs='split' gathered"),
    pytest.mark.filterwarnings("ignore:m-SAM was given no batch"),
]


def test_learning_rate_0_leaves_the_weights_bit_identical(variant, base):
    model = stateful()
    before = copies(model.parameters())
    train(variant.wrap(base(model.parameters(), lr=0.0)), model, [batch(seed=s) for s in range(3)])
    assert all(map(torch.equal, before, model.parameters()))


def test_strength_0_is_the_base_optimizer_bit_for_bit(variant, base):
    batches = [batch(seed=s) for s in range(5)]
    ours, theirs = stateful(), stateful()
    torch.manual_seed(1)
    train(variant.wrap(base(ours.parameters()), strength=0), ours, batches)
    our_random_state = torch.get_rng_state()
    torch.manual_seed(1)
    train_bare(base(theirs.parameters()), theirs, batches)
    assert_same_bits(state_of(ours), state_of(theirs))
    assert torch.equal(our_random_state, torch.get_rng_state())


class Stop(Exception):
    pass


def _raise_after_backward(optimizer, model, x, y, at):
    for index, (x_, y_) in enumerate(optimizer.passes(x, y)):
        cross_entropy(model(x_), y_).backward()
        if index == at:
            raise Stop


def _break_after_backward(optimizer, model, x, y, at):
    for index, (x_, y_) in enumerate(optimizer.passes(x, y)):
        cross_entropy(model(x_), y_).backward()
        if index == at:
            break
    raise Stop


def _raise_in_forward(optimizer, model, x, y, at):
    for index, (x_, y_) in enumerate(optimizer.passes(x, y)):
        if index == at:
            model(x_[:, :2])  # of the wrong width
        cross_entropy(model(x_), y_).backward()
    raise Stop


def _raise_in_closure(optimizer, model, x, y, at):
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        loss = cross_entropy(model(x), y)
        loss.backward()
        if calls > at:
            raise Stop
        return loss

    optimizer.step(closure)


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    "breaking",
    [_raise_after_backward, _break_after_backward, _raise_in_forward, _raise_in_closure],
    ids=lambda f: f.__name__[1:],
)
def test_a_step_broken_off_leaves_no_trace(variant, breaking, at):
    models = [stateful(), stateful()]
    optimizers = [variant.wrap(sgd(model.parameters())) for model in models]
    plan = optimizers[0]._plan(1, 8)
    if at >= len(plan):
        pytest.skip("has one pass")
    if len(plan) == 1 and plan[0].move is None:
        pytest.skip("leaves the buffers as a broken step of plain training does")
    if breaking is _raise_in_closure and not takes_closure(optimizers[0]):
        pytest.skip("takes no closure")
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(1)
        train(optimizer, model, [batch()])
    before = state_of(models[0])
    with pytest.raises((Stop, RuntimeError)):
        breaking(optimizers[0], models[0], *batch(seed=1), at)
    assert_same_bits(state_of(models[0]), before)
    assert not torch_module._global_forward_pre_hooks
    for model, optimizer in zip(models, optimizers, strict=True):
        torch.manual_seed(2)
        train(optimizer, model, [batch(seed=2)])
    assert_same_bits(state_of(models[0]), state_of(models[1]))


def test_step_after_a_break_asks_for_the_passes_again(variant):
    model = smooth()
    optimizer = variant.wrap(sgd(model.parameters()))
    for _ in optimizer.passes():
        break
    with pytest.raises(RuntimeError, match=r"zero_grad.* and run the passes again"):
        optimizer.step()


def test_saved_and_loaded_into_a_fresh_optimizer_goes_on_as_if_never_stopped(variant, base):
    batches = [batch(seed=s) for s in range(10)]
    model = stateful()
    optimizer = variant.wrap(base(model.parameters()))
    train(optimizer, model, batches[:5])
    saved = through_a_file([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()])
    train(optimizer, model, batches[5:])

    resumed = stateful(seed=99)
    fresh = variant.wrap(base(resumed.parameters()))
    resumed.load_state_dict(saved[0])
    fresh.load_state_dict(saved[1])
    torch.set_rng_state(saved[2])
    train(fresh, resumed, batches[5:])
    assert_same_bits(state_of(resumed), state_of(model))


def test_the_state_holds_no_tensors_beyond_those_of_the_base(variant):
    model = smooth()
    optimizer = variant.wrap(adamw(model.parameters()))
    train(optimizer, model, [batch(dtype=DOUBLE)])
    own = optimizer.state_dict()["perturb"]
    assert not any(isinstance(value, torch.Tensor) for value in own.values())
    assert optimizer.state_dict()["state"].keys() == optimizer.base.state_dict()["state"].keys()


def test_a_state_of_the_bare_base_optimizer_is_taken(variant):
    model = smooth()
    own = variational if card(variant.name).base else adamw
    bare = own(model.parameters())
    train_bare(bare, model, [batch(dtype=DOUBLE)])
    optimizer = variant.wrap(own(model.parameters()))
    optimizer.load_state_dict(bare.state_dict())
    assert len(optimizer.state) == len(list(model.parameters()))
    assert all(group[optimizer.strength_name] >= 0 for group in optimizer.param_groups)
    train(optimizer, model, [batch(dtype=DOUBLE)])


def test_closure_and_iterator_are_bit_identical(variant, base):
    by_closure, by_passes = stateful(), stateful()
    closures = variant.wrap(base(by_closure.parameters()))
    passes = variant.wrap(base(by_passes.parameters()))
    if not takes_closure(closures):
        pytest.skip("takes no closure")
    torch.manual_seed(1)
    for seed in range(4):
        x, y = batch(seed=seed)

        def closure(x=x, y=y):
            closures.zero_grad()
            loss = cross_entropy(by_closure(x), y)
            loss.backward()
            return loss

        assert closures.step(closure).dim() == 0
    torch.manual_seed(1)
    train(passes, by_passes, [batch(seed=seed) for seed in range(4)])
    assert_same_bits(state_of(by_closure), state_of(by_passes))


def test_micro_batches_inside_the_passes_equal_the_large_batch(variant):
    model = smooth()
    x, y = batch(8, DOUBLE)
    grads = []
    for pieces in (1, 4):
        torch.manual_seed(0)
        optimizer = variant.wrap(sgd(model.parameters()))
        for _ in optimizer.passes():
            for x_, y_ in zip(x.chunk(pieces), y.chunk(pieces), strict=True):
                (cross_entropy(model(x_), y_) / pieces).backward()
        grads.append([p.grad for p in model.parameters()])
        optimizer.zero_grad()
    for large, small in zip(*grads, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-12, atol=1e-14)


class Odd(nn.Module):
    """Frozen, unused, tied and sparsely updated parameters."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4, sparse=True)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.head = nn.Linear(4, 3)

    def forward(self, index):
        x = self.frozen(self.embedding(index))
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("face", ["passes", "closure"])
def test_frozen_unused_tied_and_sparse_parameters(variant, face):
    torch.manual_seed(0)
    model, index, y = Odd(), torch.tensor([1, 2, 2, 7]), torch.tensor([0, 1, 2, 0])
    optimizer = variant.wrap(torch.optim.SGD(model.parameters(), lr=0.1))
    before = state_of(model)

    def closure():
        optimizer.zero_grad()
        loss = cross_entropy(model(index), y)
        loss.backward()
        return loss

    if face == "passes":
        train(optimizer, model, [(index, y)])
    elif takes_closure(optimizer):
        optimizer.step(closure)
    else:
        pytest.skip("takes no closure")
    after = state_of(model)
    for name in ("frozen.weight", "unused.weight", "unused.bias"):
        assert torch.equal(after[name], before[name])
    for name in ("first.weight", "head.bias"):
        assert not torch.equal(after[name], before[name])
    moved = (after["embedding.weight"] != before["embedding.weight"]).any(1)
    assert moved.nonzero().flatten().tolist() == [1, 2, 7]
    assert model.first.weight is model.second.weight


def test_bfloat16_autocast_trains_and_may_stand_inside_or_around_the_passes(variant):
    x, y = batch()
    grads = []
    for around in (True, False):
        model = smooth(torch.float32)
        optimizer = variant.wrap(sgd(model.parameters()), strength=0.5)
        # Even a disabled autocast outside would keep the cache of the one inside.
        with torch.autocast("cpu", torch.bfloat16) if around else nullcontext():
            for x_, y_ in optimizer.passes(x, y):
                with nullcontext() if around else torch.autocast("cpu", torch.bfloat16):
                    loss = cross_entropy(model(x_), y_)
                loss.backward()
        grads.append([p.grad for p in model.parameters()])
        optimizer.step()
    assert all(map(torch.equal, *grads))


def _scaled_step(optimizer, model, scaler, x, y):
    for x_, y_ in optimizer.passes(x, y):
        with torch.autocast("cpu", torch.float16):
            loss = cross_entropy(model(x_), y_)
        scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()


def test_a_gradient_scaler_steps_and_skips_on_overflow(variant, base):
    model, (x, y) = stateful(), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = variant.wrap(base(model.parameters()), scaler=scaler)
    start = copies(model.parameters())
    _scaled_step(optimizer, model, scaler, x, y)
    assert optimizer.steps == 1
    assert not torch.equal(model[0].weight, start[0])

    before = copies(model.parameters())
    _scaled_step(optimizer, model, scaler, x * float("inf"), y)
    assert optimizer.steps == 1
    assert scaler.get_scale() == 512.0
    assert all(map(torch.equal, before, model.parameters()))


def test_an_overflow_in_the_loss_alone_leaves_finite_buffers(variant):
    model, (x, y) = stateful(), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = variant.wrap(sgd(model.parameters()), scaler=scaler)
    for x_, y_ in optimizer.passes(x, y):
        scaler.scale(cross_entropy(model(x_), y_) * float("inf")).backward()
    scaler.step(optimizer)
    assert optimizer.steps == 0
    assert all(torch.isfinite(buffer).all() for buffer in model.buffers())


def test_a_scaler_that_must_be_known_is_asked_for(variant):
    model, (x, y) = stateful(), batch()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = variant.wrap(sgd(model.parameters()))
    for x_, y_ in optimizer.passes(x, y):
        scaler.scale(cross_entropy(model(x_), y_)).backward()
    if optimizer.needs_scaler:
        with pytest.raises(InputError, match="build it with scaler=scaler"):
            scaler.step(optimizer)
    else:
        scaler.step(optimizer)
        assert optimizer.steps == 1


@pytest.mark.parametrize("key", ["sgima", "rhoo", "clean_weight", "alpha"])
def test_a_group_cannot_say_what_nobody_looks_at(variant, key):
    if variant.name == "plain" or (key == "alpha" and variant.name == "bsam"):
        pytest.skip("has no strength to misspell, or drops the key in these tests")
    groups = [{"params": smooth().parameters(), key: 5.0}]
    near = {"sgima": "sigma", "rhoo": "rho"}.get(key)
    own = card(variant.name).strength
    if near is not None and near != own:
        pytest.skip("is near another method's strength")
    if card(variant.name).base:
        pytest.skip("the tests rebuild its groups")
    with pytest.raises(InputError, match=f"a parameter group has '{key}'"):
        variant.wrap(sgd(groups))


def test_the_scaler_changes_only_the_rounding(variant):
    x, y = batch(dtype=DOUBLE)
    models = [smooth(), smooth()]
    for model, scale in zip(models, (1.0, 2.0**10), strict=True):
        torch.manual_seed(0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = variant.wrap(sgd(model.parameters()))
        if optimizer.needs_scaler:
            optimizer.scaler = scaler
        for _ in range(3):
            for x_, y_ in optimizer.passes(x, y):
                scaler.scale(cross_entropy(model(x_), y_)).backward()
            scaler.step(optimizer)
            optimizer.zero_grad()
            scaler.update()
    torch.testing.assert_close(state_of(models[0]), state_of(models[1]), rtol=1e-10, atol=1e-12)


def test_a_group_of_strength_0_stays_at_home(variant):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    key = variant.wrap(sgd(model.parameters())).strength_name
    groups = [{"params": model[0].parameters(), key: 0.0}, {"params": model[2].parameters()}]
    optimizer = variant.wrap(sgd(groups), strength=0.1)
    home = copies(model.parameters())
    seen = []
    for x_, y_ in optimizer.passes(x, y):
        assert all(map(torch.equal, home[:2], model[0].parameters()))
        seen.append(torch.equal(home[2], model[2].weight))
        cross_entropy(model(x_), y_).backward()
    assert not all(seen) or optimizer.card.name == "plain"
    assert all(map(torch.equal, home, model.parameters()))


def test_groups_may_all_be_frozen_or_of_strength_0(variant):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    model[2].requires_grad_(False)
    key = variant.wrap(sgd(model.parameters())).strength_name
    groups = [{"params": model[0].parameters(), key: 0.0}, {"params": model[2].parameters()}]
    train(variant.wrap(sgd(groups), strength=0.1), model, [(x, y)])


def test_a_group_may_come_during_training(variant):
    model, data = smooth(), batch(dtype=DOUBLE)
    optimizer = variant.wrap(sgd(model[0].parameters()))
    train(optimizer, model, [data])
    before = copies(model[2].parameters())
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.param_groups[1][optimizer.strength_name] == pytest.approx(
        optimizer.param_groups[0][optimizer.strength_name]
    )
    train(optimizer, model, [data])
    assert not any(map(torch.equal, before, model[2].parameters()))


def test_the_groups_are_those_of_the_base_also_after_loading(variant):
    model = smooth()
    optimizer = variant.wrap(adamw(model.parameters()))
    assert optimizer.param_groups is optimizer.base.param_groups
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state
    assert optimizer.defaults is optimizer.base.defaults


def test_a_scheduler_drives_the_learning_rate_without_warnings(variant):
    model, data = smooth(), batch(dtype=DOUBLE)
    optimizer = variant.wrap(sgd(model.parameters(), lr=0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "signs='split'")
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
        for expected in (0.05, 0.0):
            train(optimizer, model, [data])
            scheduler.step()
            assert optimizer.base.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize("copy_of", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("scheduled", [False, True])
def test_a_copy_goes_on_by_itself(variant, copy_of, scheduled):
    model, data = stateful(), batch()
    optimizer = variant.wrap(adamw(model.parameters()))
    if scheduled:
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=2)
    train(optimizer, model, [data])
    other_model, other = copy_of((model, optimizer))
    before = state_of(model)
    torch.manual_seed(1)
    train(other, other_model, [data])
    assert_same_bits(state_of(model), before)
    torch.manual_seed(1)
    train(optimizer, model, [data])
    assert_same_bits(state_of(other_model), state_of(model))


def test_clipping_between_passes_and_step_clips_the_whole_gradient(variant):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer = variant.wrap(torch.optim.SGD(model.parameters(), lr=1.0))
    before = copies(model.parameters())
    for x_, y_ in optimizer.passes(x, y):
        cross_entropy(model(x_), y_).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    optimizer.step()
    if card(variant.name).base:
        moved = [p.grad for p in model.parameters()]
    else:
        moved = [a - b for a, b in zip(before, model.parameters(), strict=True)]
    assert nn.utils.get_total_norm(moved) == pytest.approx(1e-3, rel=1e-4)


@pytest.mark.parametrize("face", ["passes", "closure"])
@pytest.mark.parametrize("most", [1e-3, 1e3])
def test_max_grad_norm_clips_the_steps_gradient(variant, face, most):
    models, (x, y) = [smooth(), smooth()], batch(dtype=DOUBLE)
    theirs = variant.wrap(sgd(models[0].parameters()))
    for x_, y_ in theirs.passes(x, y):
        cross_entropy(models[0](x_), y_).backward()
    nn.utils.clip_grad_norm_(models[0].parameters(), most)
    theirs.step()
    torch.manual_seed(0)
    ours = variant.wrap(sgd(models[1].parameters()), max_grad_norm=most)
    if face == "passes":
        train(ours, models[1], [(x, y)])
    elif takes_closure(ours):
        ours.step(lambda: _closed(ours, models[1], x, y))
    else:
        pytest.skip("takes no closure")
    torch.testing.assert_close(state_of(models[1]), state_of(models[0]), rtol=1e-9, atol=1e-12)


def _closed(optimizer, model, x, y, scaler=None):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.float16, enabled=scaler is not None):
        loss = cross_entropy(model(x), y)
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss


def test_a_closure_with_a_scaler_unscales_once_and_skips_on_overflow(variant):
    models, (x, y) = [stateful(), stateful()], batch()
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in models]
    optimizers = [
        variant.wrap(sgd(model.parameters()), scaler=scaler, max_grad_norm=1.0)
        for model, scaler in zip(models, scalers, strict=True)
    ]
    if not takes_closure(optimizers[0]):
        pytest.skip("takes no closure")
    torch.manual_seed(1)
    _scaled_step(optimizers[1], models[1], scalers[1], x, y)
    torch.manual_seed(1)
    optimizers[0].step(lambda: _closed(optimizers[0], models[0], x, y, scalers[0]))
    scalers[0].update()
    assert optimizers[0].steps == 1
    torch.testing.assert_close(state_of(models[0]), state_of(models[1]), rtol=1e-5, atol=1e-6)

    before = copies(models[0].parameters())
    bad = x * float("inf")
    optimizers[0].step(lambda: _closed(optimizers[0], models[0], bad, y, scalers[0]))
    scalers[0].update()
    assert optimizers[0].steps == 1
    assert scalers[0].get_scale() == 512.0
    assert all(map(torch.equal, before, models[0].parameters()))
    optimizers[0].step(lambda: _closed(optimizers[0], models[0], x, y, scalers[0]))
    assert optimizers[0].steps == 2


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("where", ["before", "inside", "after"])
def test_zero_grad_may_stand_where_it_likes(variant, where, set_to_none):
    models = [smooth(), smooth()]
    train(variant.wrap(sgd(models[0].parameters())), models[0], [batch(dtype=DOUBLE)] * 3)
    torch.manual_seed(0)
    optimizer = variant.wrap(sgd(models[1].parameters()))
    x, y = batch(dtype=DOUBLE)
    for _ in range(3):
        if where == "before":
            optimizer.zero_grad(set_to_none)
        for x_, y_ in optimizer.passes(x, y):
            if where == "inside":
                optimizer.zero_grad(set_to_none)
            cross_entropy(models[1](x_), y_).backward()
        optimizer.step()
        if where == "after":
            optimizer.zero_grad(set_to_none)
    assert_same_bits(state_of(models[0]), state_of(models[1]))


def test_the_learning_rate_of_the_base_may_be_set_through_the_wrapper(variant):
    optimizer = variant.wrap(sgd(smooth().parameters()))
    optimizer.param_groups[0]["lr"] = 0.5
    assert optimizer.base.param_groups[0]["lr"] == 0.5


def test_only_known_options_are_taken(variant):
    with pytest.raises(InputError, match=r"unknown option of .* 'learning_rate'"):
        variant.wrap(sgd(smooth().parameters()), learning_rate=1)
