"""Each relative of SAM against a slow twin: its equation, written out by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from flatminima.errors import InputError
from flatminima.perturb import ASAM, GSAM, NSO, RSAM, SAM, USAM, FriendlySAM, LookSAM, make

from .cases import DOUBLE, Variant, batch, copies, sgd, smooth, state_of, train

RATE = 0.1
EXACT = {"rtol": 1e-9, "atol": 1e-11}


def flat(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


class Twin:
    """A network as a function of one vector, trained by plain SGD along `rule(w, g, step)`."""

    def __init__(self, rule):
        self.rule = rule
        self.model = smooth()
        self.w = flat(self.model.parameters())

    def gradient(self, w, x, y):
        w = w.clone().requires_grad_()
        parts, at = {}, 0
        for name, parameter in self.model.named_parameters():
            parts[name] = w[at : at + parameter.numel()].view_as(parameter)
            at += parameter.numel()
        loss = cross_entropy(torch.func.functional_call(self.model, parts, (x,)), y)
        return torch.autograd.grad(loss, w)[0]

    def train(self, batches):
        for step, (x, y) in enumerate(batches):
            self.w = self.w - RATE * self.rule(
                self.w, lambda w, x=x, y=y: self.gradient(w, x, y), step
            )
        return self.w


RHO = 0.2


def ball(direction):
    return RHO * direction / direction.norm()


def sam(w, g, step):
    return g(w + ball(g(w)))


def usam(w, g, step):
    return g(w + RHO * g(w))


def asam(w, g, step):
    size = w.abs() + 0.01
    up = size * g(w)
    return g(w + RHO * size * up / up.norm())


def gsam(w, g, step):
    home = g(w)
    p = g(w + ball(home))
    perpendicular = home - (home @ p) / (p @ p) * p
    return p - 0.3 * perpendicular


def glad(w, g, step):
    home = g(w)
    return 0.7 * home + 0.3 * g(w + ball(home))


def looksam():
    memory = {}

    def rule(w, g, step):
        home = g(w)
        if step % 3:
            v = memory["v"]
            return home + 0.5 * home.norm() / v.norm() * v
        sharp = g(w + ball(home))
        memory["v"] = sharp - (sharp @ home) / (home @ home) * home
        return sharp

    return rule


def friendly():
    memory = {"m": 0.0}

    def rule(w, g, step):
        home = g(w)
        up = home - 0.8 * memory["m"]
        memory["m"] = 0.6 * memory["m"] + 0.4 * home
        return g(w + ball(up))

    return rule


CASES = [
    ("sam", {}, lambda: sam),
    ("usam", {}, lambda: usam),
    ("asam", {}, lambda: asam),
    ("gsam", {"alpha": 0.3}, lambda: gsam),
    ("glad", {"blend": 0.3}, lambda: glad),
    ("looksam", {"k": 3, "alpha": 0.5}, looksam),
    ("friendly-sam", {"alpha": 0.8, "beta": 0.6}, friendly),
]


@pytest.mark.parametrize(("name", "options", "rule"), CASES, ids=[case[0] for case in CASES])
def test_eight_steps_are_those_of_the_equation(name, options, rule):
    batches = [batch(dtype=DOUBLE, seed=s) for s in range(8)]
    model = smooth()
    base = torch.optim.SGD(model.parameters(), lr=RATE)
    train(make(name, base, rho=RHO, **options), model, batches)
    torch.testing.assert_close(flat(model.parameters()), Twin(rule()).train(batches), **EXACT)


def test_rsam_is_its_equation_with_the_noise_it_draws():
    x, y = batch(dtype=DOUBLE)
    model, twin = smooth(), Twin(None)
    optimizer = RSAM(
        torch.optim.SGD(model.parameters(), lr=RATE),
        rho=RHO,
        sigma=0.1,
        gradient_weight=2.0,
        seed=5,
    )
    home = copies(model.parameters())
    seen = []
    for _ in optimizer.passes():
        seen.append(flat(model.parameters()) - flat(home))
        cross_entropy(model(x), y).backward()
    z, e = seen
    assert z.std() == pytest.approx(0.1, rel=0.5)
    up = z + 2.0 * twin.gradient(twin.w + z, x, y)
    torch.testing.assert_close(e, ball(up), **EXACT)


@pytest.mark.parametrize("scale", ["layer", "filter"])
def test_rsams_noise_may_be_relative_and_leave_out_vectors(scale):
    x, y = batch(dtype=DOUBLE)
    model, twin = smooth(), Twin(None)
    base = torch.optim.SGD(model.parameters(), lr=RATE)
    optimizer = RSAM(base, rho=RHO, sigma=0.1, scale=scale, vectors=False, seed=5)
    absolute = RSAM(torch.optim.SGD(model.parameters(), lr=0.0), rho=RHO, sigma=0.1, seed=5)
    home, seen = copies(model.parameters()), []
    for either in (absolute, optimizer):
        for _ in either.passes():
            seen.append([p.detach() - h for p, h in zip(model.parameters(), home, strict=True)])
            cross_entropy(model(x), y).backward()
        either.zero_grad()
    plain, _, relative, e = seen
    for z, r, h in zip(plain, relative, home, strict=True):
        dims = 1 if scale == "filter" else None
        size = h.square().mean(dim=dims, keepdim=True).sqrt() if h.dim() > 1 else 0.0
        torch.testing.assert_close(r, z * size, **EXACT)
    z = flat(relative)
    torch.testing.assert_close(flat(e), ball(z + twin.gradient(twin.w + z, x, y)), **EXACT)


@given(scale=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_asam_does_not_see_a_rescaling_of_the_weights(scale, seed):
    # f(v1, v2) = h(v1 v2): v1 -> a v1, v2 -> v2 / a computes the same, and e must scale along.
    g = torch.Generator().manual_seed(seed)
    start = [torch.randn(3, 3, generator=g, dtype=DOUBLE) for _ in range(2)]
    steps = []
    for a in (1.0, scale):
        v = [torch.nn.Parameter(start[0] * a), torch.nn.Parameter(start[1] / a)]
        optimizer = ASAM(torch.optim.SGD(v, lr=0.0), rho=0.3, eta=0.0)
        home = copies(v)
        for _ in optimizer.passes():
            moved = [(p.detach() - h) / s for p, h, s in zip(v, home, (a, 1 / a), strict=True)]
            (v[0] * v[1]).sum().sin().backward()
        steps.append(flat(moved))
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda base: GSAM(base, rho=RHO, alpha=0.0),
        lambda base: LookSAM(base, rho=RHO, k=1),
        lambda base: FriendlySAM(base, rho=RHO, alpha=0.0),
        lambda base: RSAM(base, rho=RHO, sigma=0.0),
    ],
    ids=["gsam", "looksam", "friendly-sam", "rsam"],
)
def test_with_its_own_part_switched_off_it_is_sam(optimizer):
    batches = [batch(dtype=DOUBLE, seed=s) for s in range(4)]
    ours, theirs = smooth(), smooth()
    train(optimizer(sgd(ours.parameters())), ours, batches)
    train(SAM(sgd(theirs.parameters()), rho=RHO), theirs, batches)
    torch.testing.assert_close(state_of(ours), state_of(theirs), rtol=1e-10, atol=1e-12)


def count_gradients(optimizer, model, steps):
    passes = []
    for s in range(steps):
        x, y = batch(dtype=DOUBLE, seed=s)
        passes.append(0)
        for x_, y_ in optimizer.passes(x, y):
            passes[-1] += 1
            cross_entropy(model(x_), y_).backward()
        optimizer.step()
        optimizer.zero_grad()
    return passes


def test_looksam_really_saves_gradients():
    model = smooth()
    optimizer = LookSAM(sgd(model.parameters()), rho=RHO, k=4)
    assert count_gradients(optimizer, model, 9) == [2, 1, 1, 1, 2, 1, 1, 1, 2]
    assert optimizer.gradients_per_step() == 1.25


@pytest.mark.parametrize("name", ["sam", "nso", "nso-one-pass", "friendly-sam", "asam"])
def test_an_interval_perturbs_every_nth_step_only(name):
    model = smooth()
    optimizer = Variant(name).wrap(sgd(model.parameters()), interval=3)
    moved = []
    home = None
    for s in range(6):
        home = copies(model.parameters())
        x, y = batch(dtype=DOUBLE, seed=s)
        moved.append(False)
        for x_, y_ in optimizer.passes(x, y):
            moved[-1] |= not all(map(torch.equal, home, model.parameters()))
            cross_entropy(model(x_), y_).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert moved == [True, False, False, True, False, False]
    cost = {"nso-one-pass": 1.0}.get(name, 4 / 3)
    assert optimizer.gradients_per_step() == pytest.approx(cost)


def test_alternating_signs_alternate_under_an_interval_too():
    model = smooth()
    optimizer = NSO(sgd(model.parameters(), lr=0.0), sigma=0.1, signs="alternate", interval=2)
    home, moves = copies(model.parameters()), []
    for _ in range(3):
        for _ in optimizer.passes():
            moves.append(flat(model.parameters()) - flat(home))
            model(batch(dtype=DOUBLE)[0]).sum().backward()
        optimizer.step()
    assert torch.allclose(moves[0], -moves[2])
    assert not moves[1].any()


@pytest.mark.parametrize("scale", ["layer", "filter"])
def test_relative_noise_is_relative(scale):
    torch.manual_seed(0)
    weight = torch.nn.Parameter(
        torch.randn(4, 20_000, dtype=DOUBLE) * torch.tensor([[1.0], [2], [4], [8]])
    )
    bias = torch.nn.Parameter(torch.full((50_000,), 3.0, dtype=DOUBLE))
    optimizer = NSO(torch.optim.SGD([weight, bias], lr=0.0), sigma=0.1, scale=scale)
    home = copies([weight, bias])
    for current in optimizer.passes():
        if current.move is not None:
            moved = [(p.detach() - h) for p, h in zip((weight, bias), home, strict=True)]
        (weight.sum() + bias.sum()).backward()
    rows = home[0].square().mean(dim=1).sqrt()
    wanted = rows if scale == "filter" else home[0].square().mean().sqrt().expand(4)
    # 20 000 draws a row: a relative standard error of 0.5 %.
    torch.testing.assert_close(moved[0].std(dim=1), 0.1 * wanted, rtol=0.03, atol=0)
    assert moved[1].std() == pytest.approx(0.3, rel=0.03)


def test_vectors_may_be_left_out():
    model = smooth()
    optimizer = NSO(sgd(model.parameters()), sigma=0.1, vectors=False)
    home = copies(model.parameters())
    for _ in optimizer.passes():
        for before, now in zip(home, model.parameters(), strict=True):
            assert torch.equal(before, now) == (now.dim() == 1)
        model(batch(dtype=DOUBLE)[0]).sum().backward()


def test_memory_is_only_kept_when_the_step_is_taken():
    x, y = batch(dtype=DOUBLE)
    model = smooth()
    optimizer = FriendlySAM(sgd(model.parameters()), rho=RHO)
    for _ in range(2):  # as a GradScaler skips a step
        for _ in optimizer.passes():
            cross_entropy(model(x), y).backward()
        optimizer.zero_grad()
    assert optimizer.state_dict()["perturb"]["memory"] == []
    for _ in optimizer.passes():
        cross_entropy(model(x), y).backward()
    optimizer.step()
    first = optimizer.state_dict()["perturb"]["memory"]
    assert [set(memory) for memory in first] == [{"mean"}] * 4
    assert math.isclose(
        flat(m["mean"] for m in first).norm() / flat(p.grad for p in model.parameters()).norm(),
        0.1,
        rel_tol=0.2,
    )


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        (ASAM, {"rho": 0.1, "eta": -1}, "eta must be a number at least 0"),
        (RSAM, {"rho": 0.1, "sigma": math.inf}, "sigma must be a number at least 0 and finite"),
        (GSAM, {"rho": 0.1, "alpha": math.nan}, "alpha must be a number"),
        (LookSAM, {"rho": 0.1, "k": 0}, "k must be at least 1"),
        (LookSAM, {"rho": 0.1, "interval": 2}, "give k and leave interval out"),
        (FriendlySAM, {"rho": 0.1, "beta": 1.5}, r"beta must be a number in \[0, 1\]"),
        (RSAM, {"rho": 0.1, "sigma": -0.1}, "sigma must be a number at least 0"),
        (SAM, {"rho": 0.1, "interval": 0}, "interval must be at least 1"),
        (USAM, {"rho": -0.1}, "rho must be finite and at least 0"),
        (USAM, {"rho": 0.1, "scaler": "x"}, "scaler must be a torch.amp.GradScaler"),
        (SAM, {"rho": 0.1, "shared_ascent": "no"}, "shared_ascent must be True or False"),
        (GSAM, {"rho": 0.1, "shared_ascent": False}, "unknown option of 'gsam' 'shared_ascent'"),
        (SAM, {"rho": 0.1, "model": "x"}, "model must be the module"),
        (SAM, {"rho": 0.1, "model": torch.nn.Linear(1, 1)}, "none of the optimizer's parameters"),
        (NSO, {"sigma": 0.1, "two_point": "no"}, "two_point must be True or False"),
        (NSO, {"sigma": 0.1, "noise": ["normal"]}, "noise must be a name"),
        (FriendlySAM, {"rho": 0.1, "beta": 1.0}, "beta must be below 1"),
        (NSO, {"sigma": 0.1, "scale": "filters"}, "did you mean 'filter'"),
    ],
)
def test_bad_options(method, options, words):
    with pytest.raises(InputError, match=words):
        method(sgd(smooth().parameters()), **options)


def test_a_skipped_step_does_not_poison_the_memory_whoever_drops_the_gradients():
    x, y = batch(dtype=DOUBLE)
    model = smooth()
    optimizer = FriendlySAM(sgd(model.parameters()), rho=RHO)
    for scale in (math.inf, 1.0):
        for _ in optimizer.passes():
            (scale * cross_entropy(model(x), y)).backward()
        if scale == 1.0:
            optimizer.step()
        model.zero_grad()  # not the optimizer's own
    memory = optimizer.state_dict()["perturb"]["memory"]
    assert all(torch.isfinite(m["mean"]).all() for m in memory)


def test_asking_for_the_cost_within_the_passes_changes_nothing():
    x, y = batch(dtype=DOUBLE)
    model = smooth()
    optimizer = FriendlySAM(sgd(model.parameters()), rho=RHO)
    for _ in optimizer.passes():
        cross_entropy(model(x), y).backward()
        optimizer.gradients_per_step()
    optimizer.step()
    assert all(optimizer.state_dict()["perturb"]["memory"])


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("method", [GSAM, LookSAM])
def test_the_size_of_the_loss_only_scales_the_gradient(method, scale):
    x, y = batch(dtype=DOUBLE)
    found = []
    for factor in (1.0, scale):
        model = smooth()
        optimizer = method(torch.optim.SGD(model.parameters(), lr=0.0), rho=RHO)
        for _ in range(2):
            optimizer.zero_grad()
            for _ in optimizer.passes():
                (factor * cross_entropy(model(x), y)).backward()
            optimizer.step()
        found.append(flat(p.grad / factor for p in model.parameters()))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-9)


def test_an_interval_is_part_of_the_state():
    saved = SAM(sgd(smooth().parameters()), rho=RHO, interval=3).state_dict()
    with pytest.raises(InputError, match="saved with interval 3"):
        SAM(sgd(smooth().parameters()), rho=RHO).load_state_dict(saved)
