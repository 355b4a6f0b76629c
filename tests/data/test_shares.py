"""Training batches shared by processes: together the batch of one process, each image once."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

from genstab.data.overlapping_crops import overlapping_pairs
from genstab.data.sampler import EpochSampler
from genstab.data.shares import share, share_of_crops

SIZES = [(length, processes, size) for length in range(1, 26) for processes in (1, 2, 3, 4) for size in (1, 2, 3)]


def loader(sampler, batch_size):
    return DataLoader(sampler.dataset, batch_size, sampler=sampler)


def batches(make, processes, batch_size):
    """For each step the (images that count, weight) of every process."""
    steps = []
    for rank in range(processes):
        mine = loader(make(processes, rank), batch_size)
        batches = []
        for index, batch in enumerate(mine):
            counted, weight = share(mine, index, len(batch), processes, rank)
            batches.append((batch[counted], weight))
        assert len(batches) == len(mine)
        steps.append(batches)
    return list(zip(*steps, strict=True))


@pytest.mark.parametrize("kind", ["ours", "torch"])
def test_the_weighted_means_are_the_mean_of_one_process(kind):
    for length, processes, size in SIZES:
        numbers = torch.arange(length, dtype=torch.float64) ** 2

        def make(processes, rank, numbers=numbers, size=size):
            if kind == "ours":
                return EpochSampler(numbers, size, processes, rank, seed=5)
            return DistributedSampler(numbers, processes, rank, shuffle=False)

        one = [parts[0][0] for parts in batches(lambda p, r, make=make: make(1, 0), 1, size * processes)]
        if kind == "ours":  # the batch size of the loader is the order's, too
            one = list(loader(EpochSampler(numbers, size * processes, seed=5), size * processes))
        assert torch.cat(one).sort().values.tolist() == numbers.tolist()
        together = batches(make, processes, size)
        assert len(together) == len(one)
        for expected, parts in zip(one, together, strict=True):
            mean = sum(weight * part.mean() for part, weight in parts) / processes
            torch.testing.assert_close(mean, expected.mean(), rtol=1e-12, atol=1e-12)
            images = torch.cat([part for part, weight in parts if weight]).unique()
            assert images.tolist() == expected.sort().values.tolist()


def test_each_image_counts_once_or_equally_often_unless_that_needs_larger_batches():
    for length, processes, size in SIZES:
        steps = batches(lambda p, r, n=length, b=size: EpochSampler(torch.arange(n), b, p, r), processes, size)
        assert max(len(part) for parts in steps for part, _ in parts) <= size
        for step, parts in enumerate(steps):
            left = min(length - step * size * processes, size * processes)
            _, times = torch.cat([part for part, _ in parts]).unique(return_counts=True)
            if left >= processes:
                assert times.tolist() == [1] * left
            elif left // torch.gcd(torch.tensor(left), torch.tensor(processes)) <= size:
                assert len(times.unique()) == 1
                assert {weight for _, weight in parts} == {1}


def test_overlapping_crops_are_those_of_one_process():
    for length, processes, size in SIZES:
        steps = []
        for rank in range(processes):
            mine = loader(EpochSampler(torch.arange(length), size, processes, rank, seed=5), size)
            steps.append(
                [(batch, *share_of_crops(mine, k, len(batch), processes, rank)) for k, batch in enumerate(mine)]
            )
        one = loader(EpochSampler(torch.arange(length), size * processes, seed=5), size * processes)
        for expected, *parts in zip(one, *steps, strict=True):
            pairs = overlapping_pairs(len(expected))
            twice, once = expected[:pairs].tolist(), expected[pairs : len(expected) - pairs].tolist()
            # as a loss, the square of an image for each of its crops; where crops are compared, the root of the image
            crops = torch.tensor([i**2 for i in (*twice, *twice, *once)]).double().mean().item()
            compared = sum(i**0.5 for i in twice) / max(1, pairs)
            total = compared_total = 0.0
            seen = {"twice": set(), "once": set()}
            for images, rows, weight, pair_weight in parts:
                first, rest = images[rows.twice].tolist(), images[rows.once].tolist()
                assert first + rest  # every process takes part
                seen["twice"] |= set(first)
                seen["once"] |= set(rest) if weight else set()
                total += weight * sum(i**2 for i in (*first, *first, *rest)) / (2 * len(first) + len(rest)) / processes
                compared_total += weight * pair_weight * sum(i**0.5 for i in first) / max(1, len(first)) / processes
            assert seen == {"twice": set(twice), "once": set(once)}
            assert total == pytest.approx(crops, abs=1e-9)
            assert compared_total == pytest.approx(compared, abs=1e-9)
    # of four images, one is cropped twice, on four processes too: the fourth has none that counts
    fours = [share_of_crops(loader(EpochSampler(range(8), 1, 4, rank), 1), 0, 1, 4, rank) for rank in range(4)]
    assert fours == [(([0], []), 2.0, 2.0), (([], [0]), 1.0, 0.0), (([], [0]), 1.0, 0.0), (([], [0]), 0.0, 0.0)]


def test_a_loader_without_a_distributed_sampler_counts_whole():
    counted, weight = share(DataLoader(range(3), 2), 1, 1, 2, 0)
    assert counted.tolist() == [True]
    assert weight == 1
