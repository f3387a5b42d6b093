"""FSDP2: two processes that each hold half of every weight, against one that holds all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flatminima.errors import InputError
from flatminima.perturb import NSO

from . import fsdp_ranks

pytestmark = pytest.mark.slow

VARIANTS = [pytest.param(variant, id=str(variant)) for variant in fsdp_ranks.VARIANTS]


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    directory = tmp_path_factory.mktemp("fsdp")
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", fsdp_ranks.__name__]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(directory)], env={**os.environ, "PYTHONPATH": paths}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    return [torch.load(directory / f"{rank}.pt") for rank in range(2)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("how", ["passes", "kept gathered", "closure"])
def test_sharded_training_equals_one_process_on_the_whole_batch(both, variant, how):
    ours = both[0][str(variant)]
    if how not in ours:
        pytest.skip("takes no closure")
    face = "closure" if how == "closure" else "passes"
    alone = fsdp_ranks.whole(fsdp_ranks.train(variant, face=face)[0])
    for sharded, other, one in zip(ours[how], both[1][str(variant)][how], alone, strict=True):
        assert torch.equal(sharded, other)
        torch.testing.assert_close(sharded, one, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_saving_and_loading_goes_on_as_if_never_stopped(both, variant):
    assert all(found[str(variant)]["resumed"] for found in both)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_come_home_bit_for_bit(both, variant):
    assert all(found[str(variant)]["home"] for found in both)


@pytest.mark.parametrize(
    ("mark", "words"),
    [("_fsdp_flattened", r"FSDP1.*fully_shard"), ("ds_id", r"ZeRO-3.*fully_shard")],
)
def test_what_hides_its_shards_is_refused(mark, words):
    weight = torch.nn.Parameter(torch.zeros(3))
    setattr(weight, mark, True)
    with pytest.raises(InputError, match=words):
        NSO(torch.optim.SGD([weight], lr=0.1), sigma=0.1)
