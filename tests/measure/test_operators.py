import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from flatminima.errors import InputError
from flatminima.measure import Dense, GaussNewton, Hessian, LowRank, Shift, Sum

from .cases import (
    DOUBLE,
    MODELS,
    Quadratic,
    cross_entropy,
    dense_hessian,
    mlp,
    quadratic_loss,
    split,
    symmetric,
)


def matrix(operator):
    return operator.matmat(torch.eye(operator.shape[0], dtype=operator.dtype))


def close(a, b, tolerance=1e-10):
    assert torch.linalg.matrix_norm(a - b) <= tolerance * torch.linalg.matrix_norm(b)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 7, 10_000])
def test_products_are_those_of_the_dense_hessian(name, chunk):
    model, batch = MODELS[name]()
    close(matrix(Hessian(model, cross_entropy, [batch], chunk=chunk)), dense_hessian(model, batch))


@pytest.mark.parametrize("sizes", [(22, 2), (1, 23), (5, 9, 10)])
def test_unequal_batches_equal_the_whole_set(sizes):
    model, batch = mlp()
    close(
        matrix(Hessian(model, cross_entropy, split(batch, *sizes))),
        matrix(Hessian(model, cross_entropy, [batch])),
    )


def test_500_and_12_samples_equal_512():
    model, batch = mlp(512)
    v = torch.randn(model[0].weight.numel() + 27, 2, dtype=DOUBLE)
    whole = Hessian(model, cross_entropy, [batch])
    parts = Hessian(model, cross_entropy, split(batch, 500, 12))
    close(parts.matmat(v), whole.matmat(v))
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts.samples == 512


def test_a_loader_a_mapping_and_a_list_agree():
    model, batch = mlp()
    v = torch.ones(57, 1, dtype=DOUBLE)
    loader = DataLoader(TensorDataset(*batch), batch_size=7, shuffle=True)
    mappings = [{"inputs": x, "targets": y} for x, y in split(batch, 4, 20)]
    expected = Hessian(model, cross_entropy, [batch]).matmat(v)
    close(Hessian(model, cross_entropy, loader).matmat(v), expected)
    close(Hessian(model, cross_entropy, mappings).matmat(v), expected)


def test_a_choice_of_parameters_gives_the_diagonal_block():
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, [batch], params=model[2].parameters())
    assert dict(operator.blocks) == {"2.weight": slice(0, 18), "2.bias": slice(18, 21)}
    close(matrix(operator), dense_hessian(model, batch)[-21:, -21:])


def test_frozen_unused_tied_and_linear_parameters():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
            self.unused = nn.Parameter(torch.ones(2))
            self.tied = self.a

    # f = sum a^2 tied b^0 + b = sum a^3 + b: Hessian 6a on the diagonal of a, else 0.
    def loss(model, batch):
        return (model.a**2 * model.tied * model.frozen).sum() + model.b.sum()

    operator = Hessian(Net(), loss, [torch.zeros(4)])
    assert list(operator.blocks) == ["a", "b", "unused"]
    assert torch.equal(matrix(operator), torch.tensor([6.0] * 3 + [0.0] * 5).diag())


def test_a_loss_without_curvature_has_a_zero_hessian():
    model = nn.Linear(3, 1)
    operator = Hessian(model, lambda m, x: m(x).mean(), [torch.ones(2, 3)])
    assert not matrix(operator).any()


def test_gradients_and_products_are_counted():
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, split(batch, 20, 4))
    operator.matmat(torch.ones(57, 5))
    operator.matmat(torch.ones(57, 1))
    assert (operator.gradients, operator.hvps) == (2, 6)


def test_float32_is_close_to_float64():
    model, batch = mlp()
    exact = dense_hessian(model, batch)
    single = Hessian(model.float(), cross_entropy, [(batch[0].float(), batch[1])])
    assert single.dtype == torch.float32
    close(matrix(single).double(), exact, tolerance=1e-5)


def test_works_where_gradients_are_switched_off():
    hessian = symmetric(4)
    with torch.no_grad():
        operator = Hessian(Quadratic(hessian), quadratic_loss, [torch.zeros(1)])
        close(matrix(operator), hessian, tolerance=1e-15)


def test_batchnorm_in_training_mode_on_request():
    model, batch = MODELS["cnn"]()
    model.train()
    running = model[1].running_mean.clone()
    v = torch.ones(sum(p.numel() for p in model.parameters()), 1, dtype=DOUBLE)
    batch_statistics = Hessian(model, cross_entropy, [batch], eval_mode=False).matmat(v)
    assert not torch.allclose(batch_statistics, Hessian(model, cross_entropy, [batch]).matmat(v))
    assert torch.equal(model[1].running_mean, running)


def test_samples_that_change_between_passes_are_refused():
    model, (x, y) = mlp()

    class Growing:
        size = 5

        def __iter__(self):
            self.size += 1
            return iter([(x[: self.size], y[: self.size])])

    operator = Hessian(model, cross_entropy, Growing())
    operator.matmat(torch.ones(57, 1))
    with pytest.raises(InputError, match=r"over 6 samples and is now .* over 7"):
        operator.matmat(torch.ones(57, 1))


def test_moved_weights_are_refused():
    model, batch = mlp()
    operator = Hessian(model, cross_entropy, [batch])
    operator.matmat(torch.ones(57, 1))
    with torch.no_grad():
        model[0].weight.mul_(2)
    with pytest.raises(InputError, match="make a new Hessian when the weights have moved"):
        operator.matmat(torch.ones(57, 1))


def test_wrong_shapes_are_refused():
    model, batch = mlp()
    with pytest.raises(InputError, match=r"\(57,\): give \(57, m\)"):
        Hessian(model, cross_entropy, [batch]).matmat(torch.ones(57))
    with pytest.raises(InputError, match="square"):
        Dense(torch.ones(2, 3))
    with pytest.raises(InputError, match="chunk is 0"):
        Hessian(model, cross_entropy, [batch], chunk=0)


def test_low_rank_is_the_matrix_it_says():
    vectors, weights = torch.randn(9, 3, dtype=DOUBLE), torch.tensor([2.0, -1.0, 0.5]).to(DOUBLE)
    operator = LowRank(vectors, weights, shift=0.3)
    expected = vectors @ weights.diag() @ vectors.T + 0.3 * torch.eye(9, dtype=DOUBLE)
    close(matrix(operator), expected)
    assert operator.hvps == 9
    with pytest.raises(InputError, match=r"\(n, r\) and \(r,\)"):
        LowRank(vectors, weights[:2])


def test_sums_and_scalings():
    model, batch = mlp()
    hessian = Hessian(model, cross_entropy, [batch])
    ggn = GaussNewton(model, cross_entropy, [batch])
    rest = Sum([hessian, ggn], [2.0, -1.0])
    close(matrix(rest), 2 * matrix(hessian) - matrix(ggn))
    close(matrix(Sum([hessian])), matrix(hessian))
    assert rest.hvps == hessian.hvps + ggn.hvps
    assert rest.description.startswith("2 (Hessian, reverse over reverse) + -1 (Gauss-Newton")
    with pytest.raises(InputError, match="2 operators and 1 weights"):
        Sum([hessian, ggn], [1.0])
    with pytest.raises(InputError, match="of the same parameters"):
        Sum([hessian, GaussNewton(model, cross_entropy, [batch], params="0.*")])


def test_a_shift_is_the_operator_and_a_multiple_of_the_identity():
    model, batch = mlp()
    ggn = GaussNewton(model, cross_entropy, [batch])
    shifted = Shift(ggn, 0.3)
    plain = matrix(ggn)
    close(matrix(shifted), plain + 0.3 * torch.eye(len(plain), dtype=DOUBLE))
    assert (shifted.hvps, shifted.gradients) == (ggn.hvps, ggn.gradients)
    assert shifted.blocks == ggn.blocks
    assert shifted.description.endswith("+ 0.3 I")


def test_a_shift_may_differ_between_coordinates():
    model, batch = mlp()
    ggn = GaussNewton(model, cross_entropy, [batch])
    plain, each = matrix(ggn), torch.rand(57, dtype=DOUBLE)
    close(matrix(Shift(ggn, each)), plain + torch.diag(each))
    assert Shift(ggn, each).description.endswith("+ a diagonal")
    with pytest.raises(InputError, match="one for each of the 57 coordinates"):
        Shift(ggn, each[:3])


def test_each_batch_gives_its_own_products():
    model, batch = mlp()
    v, seen = torch.randn(57, 2, dtype=DOUBLE), []
    operator = Hessian(model, cross_entropy, split(batch, 20, 4))
    products = operator.matmat(v, lambda count, own: seen.append((count, own.clone())))
    assert [count for count, _ in seen] == [20, 4]
    for (_, own), part in zip(seen, split(batch, 20, 4), strict=True):
        close(own, Hessian(model, cross_entropy, [part]).matmat(v))
    close(products, operator.matmat(v))
