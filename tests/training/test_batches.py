from hypothesis import given
from hypothesis import strategies as st

from flatminima.training.batches import Epoch, batches_per_epoch

sizes = st.integers(1, 60)


@given(samples=sizes, batch_size=sizes, seed=st.integers(0, 9), epoch=st.integers(0, 9))
def test_an_epoch_is_a_permutation(samples, batch_size, seed, epoch):
    batches = list(Epoch(samples, batch_size, seed=seed, epoch=epoch))
    assert sorted(i for batch in batches for i in batch) == list(range(samples))
    assert len(batches) == batches_per_epoch(samples, batch_size)
    assert all(len(batch) == batch_size for batch in batches[:-1])


@given(samples=sizes, batch_size=sizes, start=st.integers(0, 5))
def test_continuing_in_the_middle_is_the_rest_of_the_epoch(samples, batch_size, start):
    whole = list(Epoch(samples, batch_size, seed=1, epoch=2))
    assert list(Epoch(samples, batch_size, seed=1, epoch=2, start=start)) == whole[start:]


@given(samples=sizes, batch_size=st.integers(3, 60), world_size=st.integers(1, 3))
def test_processes_share_each_batch(samples, batch_size, world_size):
    alone = Epoch(samples, batch_size, seed=1, epoch=0).batches
    ranks = [
        list(Epoch(samples, batch_size, seed=1, epoch=0, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert len(ranks[0]) == batches_per_epoch(samples, batch_size, world_size)
    for whole, *shares in zip(alone, *ranks, strict=False):
        assert sorted(i for share in shares for i in share) == sorted(whole)
        assert all(shares)


def test_epochs_and_seeds_differ():
    orders = [
        list(Epoch(50, 50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)
    ]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])
