"""Bad input, and loops in which a careless engine would go wrong without a word."""

import copy
import math
from unittest.mock import Mock

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules import module as torch_module

from flatminima.errors import InputError
from flatminima.perturb import NSO, SAM, Plain, schedules

from .cases import (
    DOUBLE,
    adamw,
    assert_same_bits,
    batch,
    copies,
    gradient,
    sgd,
    smooth,
    state_of,
    stateful,
    train,
)


def nso(model, **options):
    return NSO(sgd(model.parameters()), **{"sigma": 0.1, **options})


@pytest.mark.parametrize("method", [NSO, SAM])
@pytest.mark.parametrize("where", ["argument", "group"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-0.1, "must be finite and at least 0, not -0.1"),
        (math.nan, "must be finite and at least 0, not nan"),
        (math.inf, "must be finite and at least 0, not inf"),
        ("0.1", "must be a number, not '0.1'"),
        (None, "must be a number, not None"),
        (True, "must be a number, not True"),
    ],
)
def test_bad_strengths_are_named(method, where, value, message):
    name = method.strength_name
    group = {"params": smooth().parameters(), **({name: value} if where == "group" else {})}
    with pytest.raises(InputError, match=f"{name} {message}"):
        method(sgd([group]), **{name: value if where == "argument" else 0.1})


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_twice_in_a_group_is_refused():
    w = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="stands twice in one group"):
        NSO(torch.optim.SGD([w, w]), sigma=0.1)


def test_a_strength_may_be_any_real_number_type():
    assert nso(smooth(), sigma=numpy.float64(0.1)).param_groups[0]["sigma"] == 0.1
    assert nso(smooth(), sigma=1).param_groups[0]["sigma"] == 1


def test_a_schedule_that_leaves_the_range_is_named_at_its_step():
    optimizer = nso(smooth(), schedule=lambda step: -1.0)
    with pytest.raises(InputError, match="the schedule's sigma must be finite and at least 0"):
        next(optimizer.passes())


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda p: p, "must be a torch optimizer, not list: flatminima.NSO"),
        (lambda p: None, "must be a torch optimizer, not NoneType"),
        (lambda p: SAM(sgd(p), rho=0.1), "SAM already wraps a base optimizer: wrap SAM's own base"),
        (torch.optim.LBFGS, "LBFGS calls its closure itself"),
        (lambda p: sgd([q.requires_grad_(False) for q in p]), "no trainable parameters"),
    ],
)
def test_bases_that_cannot_be_wrapped(base, message):
    with pytest.raises(InputError, match=message):
        NSO(base(list(smooth().parameters())), sigma=0.1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda loss: None, "returned None: end it with `return loss`"),
        (lambda loss: torch.ones(2, 3), r"shape \(2, 3\): return the scalar loss"),
        (lambda loss: "loss", "returned str: return the scalar loss"),
    ],
)
def test_bad_closures_are_named_and_leave_the_weights(returned, message):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    before = state_of(model)

    def closure():
        loss = cross_entropy(model(x), y)
        loss.backward()
        return returned(loss)

    with pytest.raises(InputError, match=message):
        nso(model).step(closure)
    assert_same_bits(state_of(model), before)


def test_step_without_passes_shows_the_four_lines():
    with pytest.raises(RuntimeError, match=r"for _ in optimizer\.passes\(\)") as caught:
        nso(smooth()).step()
    for line in ("loss_fn(model(x), y).backward()", "optimizer.step()", "optimizer.zero_grad()"):
        assert line in str(caught.value)


def test_zero_grad_between_passes_and_step_starts_anew():
    model, data = smooth(), batch(dtype=DOUBLE)
    optimizer = nso(model)
    gradient(optimizer, lambda: cross_entropy(model(data[0]), data[1]))
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match="needs the gradients"):
        optimizer.step()


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        (lambda p: SAM(sgd(p), rho=0.1), "saved with method 'nso', but the optimizer has 'sam'"),
        (lambda p: NSO(sgd(p), sigma=0.1, schedule=schedules.linear(5)), "saved with schedule"),
    ],
)
def test_states_of_another_method_or_schedule_are_refused(ours, message):
    model = smooth()
    state = nso(model).state_dict()
    with pytest.raises(InputError, match=message):
        ours(model.parameters()).load_state_dict(state)


def test_groups_keep_their_own_strength_when_a_bare_state_is_loaded():
    model = smooth()
    groups = [{"params": model[0].parameters(), "sigma": 0.5}, {"params": model[2].parameters()}]
    optimizer = NSO(sgd(groups), sigma=0.1)
    bare = sgd([{"params": model[0].parameters()}, {"params": model[2].parameters()}])
    optimizer.load_state_dict(bare.state_dict())
    assert [group["sigma"] for group in optimizer.param_groups] == [0.5, 0.1]


def test_the_strength_in_a_saved_state_wins_as_the_learning_rate_does():
    saved, fresh = nso(smooth(), sigma=0.3), nso(smooth(), sigma=0.1)
    fresh.load_state_dict(saved.state_dict())
    assert fresh.param_groups[0]["sigma"] == 0.3


def test_a_closure_returns_the_loss_at_home_or_the_mean():
    w = nn.Parameter(torch.tensor([2.0], dtype=DOUBLE))

    def closure():
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    for options in ({"clean_weight": 0.5}, {"running_statistics": "clean"}, {"sigma": 0.0}):
        optimizer = NSO(torch.optim.SGD([w], lr=0.0), **{"sigma": 0.1, **options})
        assert optimizer.step(closure).item() == 4.0
    optimizer = SAM(torch.optim.SGD([w], lr=0.0), rho=0.1)
    assert optimizer.step(closure).item() == 4.0
    optimizer = NSO(torch.optim.SGD([w], lr=0.0), sigma=0.1, noise="rademacher")
    assert optimizer.step(closure).item() == pytest.approx(4.0 + 0.01)
    assert isinstance(optimizer.step(lambda: closure().item()), float)


def test_a_closure_may_stand_in_no_grad_and_clear_as_it_likes():
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    expected = gradient(
        nso(model, num_perturbations=2), lambda: cross_entropy(model(x), y), *model.parameters()
    )
    for clear in (model.zero_grad, lambda: model.zero_grad(set_to_none=False), lambda: None):
        model.zero_grad()
        optimizer = NSO(torch.optim.SGD(model.parameters(), lr=0.0), sigma=0.1, num_perturbations=2)

        def closure(clear=clear):
            clear()
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(2):
            optimizer._steps = 0  # the same noise again, now with the gradients left over
            with torch.no_grad():
                optimizer.step(closure)
        for p, e in zip(model.parameters(), expected, strict=True):
            torch.testing.assert_close(p.grad, e, rtol=1e-12, atol=1e-14)


def test_the_closure_runs_once_for_each_pass():
    w = nn.Parameter(torch.ones(1))
    closure = Mock(side_effect=lambda: w.sum())
    NSO(torch.optim.SGD([w]), sigma=0.1, num_perturbations=3, clean_weight=0.5).step(closure)
    assert closure.call_count == 7


def run(optimizer, body):
    for _ in optimizer.passes():
        body()


@pytest.mark.parametrize("how", ["model", "base", "by_hand"])
def test_gradients_emptied_behind_the_engines_back_are_an_error(how):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer, before = nso(model), state_of(model)

    def empty():
        for p in model.parameters():
            p.grad = None

    clear = {"model": model.zero_grad, "base": optimizer.base.zero_grad, "by_hand": empty}[how]

    def body():
        clear()
        cross_entropy(model(x), y).backward()

    with pytest.raises(RuntimeError, match=r"\.grad was emptied or replaced"):
        run(optimizer, body)
    assert_same_bits(state_of(model), before)


def test_gradients_may_appear_in_some_passes_only():
    a, b = (nn.Parameter(torch.tensor([v], dtype=DOUBLE)) for v in (1.0, 2.0))
    for first in (True, False):
        optimizer = NSO(torch.optim.SGD([a, b]), sigma=0.1)
        optimizer.zero_grad()
        for index, _ in enumerate(optimizer.passes()):
            (a.sum() + (b.sum() if (index == 0) == first else 0.0)).backward()
        assert a.grad.item() == pytest.approx(1.0)
        assert b.grad.item() == pytest.approx(0.5)


def test_gradients_left_from_the_step_before_add_up_as_in_torch():
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer = nso(model, num_perturbations=3)
    once = gradient(optimizer, lambda: cross_entropy(model(x), y), *model.parameters())
    for _ in optimizer.passes():
        cross_entropy(model(x), y).backward()
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_second_order_backward_is_no_loss_of_gradients():
    w = nn.Parameter(torch.ones(2, dtype=DOUBLE))
    optimizer = NSO(torch.optim.SGD([w]), sigma=0.1)
    for _ in optimizer.passes():
        w.pow(2).sum().backward(create_graph=True)
    torch.testing.assert_close(w.grad.detach(), 2 * torch.ones(2, dtype=DOUBLE))


@pytest.mark.parametrize("inside", ["step", "passes"])
def test_a_step_or_other_passes_inside_the_loop_are_an_error(inside):
    model, (x, y) = stateful(), batch()
    optimizer, before = nso(model), state_of(model)

    def body():
        cross_entropy(model(x), y).backward()
        if inside == "step":
            optimizer.step()
        else:
            next(optimizer.passes())

    with pytest.raises(RuntimeError, match=r"broken off|ended by step"):
        run(optimizer, body)
    assert_same_bits(state_of(model), before)


def test_an_iterator_kept_alive_is_ended_by_the_next_call():
    model, (x, y) = stateful(), batch()
    optimizer, before = nso(model), state_of(model)
    kept = optimizer.passes()
    next(kept)
    cross_entropy(model(x), y).backward()
    assert not torch.equal(model[0].weight, before["0.weight"])
    with pytest.raises(RuntimeError, match="broken off"):
        optimizer.step()
    assert_same_bits(state_of(model), before)
    assert model[0].weight.grad is None
    del kept
    assert not torch_module._global_forward_pre_hooks


def test_a_broken_micro_batch_takes_the_ones_before_along_and_says_so():
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer = nso(model)
    for index in range(3):
        for _ in optimizer.passes():
            if index == 1:
                break
            cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="not whole"):
        optimizer.step()
    optimizer.zero_grad()
    train(optimizer, model, [(x, y)])


def test_two_optimizers_on_two_networks_of_one_loss_as_in_a_gan():
    def run(wrap):
        generator, critic = smooth(seed=1), smooth(seed=2)
        optimizers = [wrap(sgd(net.parameters())) for net in (generator, critic)]
        x, _ = batch(dtype=DOUBLE)
        for _ in range(3):
            for optimizer, sign in zip(optimizers, (1, -1), strict=True):
                optimizer.zero_grad()
                for _ in optimizer.passes():
                    fake = nn.functional.pad(generator(x), (0, 1))
                    (sign * critic(fake).tanh().sum()).backward()
                optimizer.step()
        return {**state_of(generator), **{f"critic {n}": t for n, t in state_of(critic).items()}}

    assert_same_bits(run(Plain), run(lambda base: NSO(base, sigma=0.0)))
    noisy = run(lambda base: NSO(base, sigma=1e-6))
    torch.testing.assert_close(noisy, run(Plain), rtol=1e-6, atol=1e-9)


def test_what_the_body_does_to_moved_weights_is_undone():
    model = smooth()
    before = copies(model.parameters())
    for _ in nso(model).passes():
        for p in model.parameters():
            p.data.clamp_(-0.01, 0.01)
    assert all(map(torch.equal, before, model.parameters()))


def test_weights_seen_after_the_passes_under_autocast_are_those_at_home():
    model, (x, _) = smooth(torch.float32), batch()
    optimizer = nso(model, sigma=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in optimizer.passes():
            model(x).sum().backward()
        inside = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, model(x))


def test_a_frozen_gradient_is_not_scaled():
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1), requires_grad=False)
    b.grad = torch.ones(1)
    gradient_before = b.grad.clone()
    optimizer = NSO(torch.optim.SGD([a, b]), sigma=0.1, num_perturbations=3)
    for _ in optimizer.passes():
        a.sum().backward()
    assert torch.equal(b.grad, gradient_before)


def test_integer_parameters_and_empty_ones_are_left_alone():
    count = nn.Parameter(torch.arange(3), requires_grad=False)
    empty, w = nn.Parameter(torch.empty(0)), nn.Parameter(torch.ones(()))
    for method in (NSO, SAM):
        optimizer = method(torch.optim.SGD([count, empty, w]), **{method.strength_name: 0.1})
        for _ in optimizer.passes():
            (w + empty.sum()).backward()
        optimizer.step()
    assert torch.equal(count, torch.arange(3))


def test_memory_format_and_strides_survive():
    conv = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = NSO(sgd(conv.parameters()), sigma=0.1)
    pointer, before = conv.weight.data_ptr(), conv.weight.detach().clone()
    for _ in optimizer.passes():
        conv(torch.randn(2, 3, 5, 5)).sum().backward()
    assert conv.weight.data_ptr() == pointer
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(conv.weight, before)


def test_data_parallel_without_devices_is_the_module():
    model, (x, y) = stateful(), batch()
    optimizer = nso(model)
    train(optimizer, nn.DataParallel(model), [(x, y)])
    assert model[1].num_batches_tracked == 1


def test_current_pass_and_last_pass_follow_the_loop():
    optimizer = nso(smooth(), num_perturbations=2)
    last = []
    for current in optimizer.passes():
        assert optimizer.current_pass is current
        last.append(optimizer.is_last_pass)
    assert last == [False, False, False, True]
    assert optimizer.current_pass is None


def test_step_hooks_see_one_step_of_wrapper_and_base():
    model, data = smooth(), batch(dtype=DOUBLE)
    optimizer = nso(model, num_perturbations=2)
    hooks = Mock(return_value=None), Mock(return_value=None)
    optimizer.register_step_post_hook(hooks[0])
    optimizer.base.register_step_post_hook(hooks[1])
    train(optimizer, model, [data])
    assert [hook.call_count for hook in hooks] == [1, 1]


def test_loading_during_passes_comes_home_first():
    model = smooth()
    optimizer = NSO(adamw(model.parameters()), sigma=0.1)
    state, before = optimizer.state_dict(), copies(model.parameters())
    kept = optimizer.passes()
    next(kept)
    optimizer.load_state_dict(state)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("method", [NSO, SAM])
def test_the_whole_loop_may_run_where_gradients_are_off(method):
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer = method(sgd(model.parameters()), **{method.strength_name: 0.1})
    with torch.no_grad():
        for _ in optimizer.passes():
            with torch.enable_grad():
                cross_entropy(model(x), y).backward()
        optimizer.step()
    assert optimizer.steps == 1


def test_zeroing_after_backward_inside_the_loop_is_refused():
    model, (x, y) = smooth(), batch(dtype=DOUBLE)
    optimizer = NSO(sgd(model.parameters()), sigma=0.1)
    passes = optimizer.passes()
    next(passes)
    cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match="emptied or replaced"):
        optimizer.zero_grad()
    passes.close()


def test_batches_that_do_not_fit_each_other_or_are_empty_are_refused():
    model = smooth()
    optimizer = NSO(sgd(model.parameters()), sigma=0.1, signs="split")
    with pytest.raises(InputError, match=r"tensors of \[4, 5\] samples"):
        next(optimizer.passes(torch.zeros(5, 4), torch.zeros(4)))
    with pytest.raises(InputError, match="empty batch"):
        next(optimizer.passes(torch.zeros(0, 4)))


@pytest.mark.parametrize(
    "other", [{"num_perturbations": 2}, {"noise": "laplace"}, {"signs": "split"}]
)
def test_a_state_saved_with_other_options_is_refused(other):
    saved = NSO(sgd(smooth().parameters()), sigma=0.1).state_dict()
    (option,) = other
    with pytest.raises(InputError, match=f"saved with {option}"):
        NSO(sgd(smooth().parameters()), sigma=0.1, **other).load_state_dict(saved)


def test_numpy_numbers_are_numbers():
    numpy = pytest.importorskip("numpy")
    optimizer = NSO(
        sgd(smooth().parameters()), sigma=numpy.float32(0.5), num_perturbations=numpy.int64(2)
    )
    assert optimizer.strength(optimizer.param_groups[0]) == 0.5
    assert optimizer.gradients_per_step() == 4


def test_on_a_cpu_the_copy_of_the_weights_lies_where_that_of_the_step_before_lay():
    model = smooth()
    optimizer, found = NSO(sgd(model.parameters()), sigma=0.1), []
    for seed in range(3):
        for x, y in optimizer.passes(*batch(dtype=DOUBLE, seed=seed)):
            homes = [home for _, home in optimizer._running.weights.positions()]
            cross_entropy(model(x), y).backward()
        found.append([home.data_ptr() for home in homes])
        optimizer.step()
        optimizer.zero_grad()
    assert found[0] == found[1] == found[2]


def test_a_copy_of_an_optimizer_has_no_copy_of_the_weights():
    model = smooth()
    optimizer = NSO(sgd(model.parameters()), sigma=0.1)
    train(optimizer, model, [batch(dtype=DOUBLE)])
    assert optimizer._spare._held
    assert not copy.deepcopy(optimizer)._spare._held


def test_parameters_that_join_are_copied_too():
    model, late = smooth(), torch.nn.Parameter(torch.ones(3, dtype=DOUBLE))
    optimizer = NSO(sgd(model.parameters(), lr=0.0), sigma=0.1)
    train(optimizer, model, [batch(dtype=DOUBLE)])
    optimizer.add_param_group({"params": [late]})
    for _ in optimizer.passes():
        assert not torch.equal(late.detach(), torch.ones_like(late))
    assert torch.equal(late.detach(), torch.ones_like(late))
