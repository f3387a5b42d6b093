import pytest
import torch

from flatminima.perturb import card

from .cases import BASES, VARIANTS, variational


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=VARIANTS, ids=str)
def variant(request):
    """Each registered method, and settings of NSO that make other plans."""
    return request.param


@pytest.fixture(params=BASES, ids=lambda base: base.__name__)
def base(request, variant):
    if card(variant.name).base:
        if request.param is not BASES[0]:
            pytest.skip("has a base optimizer of its own")
        return variational
    return request.param
