from itertools import chain

import pytest
import torch
from torch.utils.data import Dataset

from genstab.data.datamodules import SyntheticData
from genstab.data.sampler import EpochSampler, ResumableLoader


class Read(Dataset):
    """Numbers that note which of them were read."""

    def __init__(self, length):
        self.length, self.read = length, []

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        self.read.append(index)
        return index


def batches(length, size, seed=0, processes=1, rank=0, epoch=0):
    order = EpochSampler(range(length), size, processes, rank, seed)
    order.set_epoch(epoch)
    return [batch.tolist() for batch in ResumableLoader(range(length), order)]


def flat(parts):
    return [*chain.from_iterable(parts)]


def test_an_epoch_is_a_permutation_of_its_own_and_the_same_at_every_call():
    epochs = [flat(batches(20, 3, seed=5, epoch=epoch)) for epoch in range(3)]
    assert all(sorted(order) == list(range(20)) for order in epochs)
    assert len({tuple(order) for order in epochs}) == 3
    assert epochs[1] == flat(batches(20, 3, seed=5, epoch=1))
    assert epochs[1] == torch.randperm(20, generator=torch.Generator().manual_seed(6)).tolist()


@pytest.mark.parametrize(("processes", "length"), [(2, 9), (3, 11), (3, 25)])
def test_every_process_goes_on_where_it_stood(processes, length):
    for rank in range(processes):
        whole = batches(length, 2, 3, processes, rank)
        order = EpochSampler(range(length), 2, processes, rank)
        for seen in range(len(whole)):
            loader = ResumableLoader(range(length), order)
            loader.load_state_dict({"seed": 3, "batch": seen})
            assert [batch.tolist() for batch in loader] == whole[seen:]


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_each_step_of_one(processes):
    one = batches(24, 2 * processes)
    several = [batches(24, 2, processes=processes, rank=rank) for rank in range(processes)]
    assert [set(step) for step in one] == [set(flat(step)) for step in zip(*several, strict=True)]


def test_what_was_seen_is_not_read_again():
    data = Read(11)
    whole = batches(11, 2, seed=3)
    loader = ResumableLoader(data, EpochSampler(data, 2, seed=9))
    loader.load_state_dict({"seed": 3, "batch": 4})
    assert loader.state_dict() == {"seed": 3, "batch": 4}
    assert len(loader) == 6
    assert [batch.tolist() for batch in loader] == whole[4:]
    assert data.read == flat(whole[4:])
    assert [batch.tolist() for batch in loader] == whole  # the next pass is a whole one


def test_the_place_is_that_of_the_batches_handed_out():
    loader = ResumableLoader(range(6), EpochSampler(range(6), 2))
    found = [loader.state_dict()["batch"]]
    found += [loader.state_dict()["batch"] for _ in loader]
    assert found == [0, 1, 2, 0]  # at the end the next epoch begins


def test_the_epoch_may_be_told_after_the_iterator_was_asked_for():
    loader = ResumableLoader(range(9), EpochSampler(range(9), 9))
    iterator = iter(loader)
    loader.sampler.set_epoch(4)
    assert [batch.tolist() for batch in iterator] == batches(9, 9, epoch=4)


@pytest.mark.parametrize("workers", [0, 1])
def test_loaders_draw_nothing_from_the_global_generator(monkeypatch, workers):
    monkeypatch.setenv("PL_GLOBAL_SEED", "4")
    data = SyntheticData(train_images=5, val_images=2, size=16, crop_size=16, batch_size=2, num_workers=workers)
    before = torch.get_rng_state()
    names = [batch["name"] for batch in data.train_dataloader()]
    assert len([*data.val_dataloader()]) == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert [int(name) for batch in names for name in batch] == flat(batches(5, 2, seed=4))
