"""The order in which training visits images."""

import torch

from edgediff.data.order import step_generator, visited


def test_every_epoch_is_a_permutation_however_it_is_cut_into_batches():
    positions = torch.arange(20)
    whole = visited(positions, count=10, seed=3)
    first, second = whole[:10], whole[10:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert first.tolist() != second.tolist()
    assert torch.equal(torch.cat([visited(part, count=10, seed=3) for part in positions.split(4)]), whole)
    assert not torch.equal(visited(positions, count=10, seed=4), whole)


def test_a_batch_larger_than_the_set_wraps_around():
    indices = visited(torch.arange(8), count=3, seed=0)
    assert torch.bincount(indices, minlength=3).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])


def test_the_generators_of_steps_differ_and_repeat():
    def draw(seed, step):
        return tuple(torch.randn(3, generator=step_generator(seed, step)).tolist())

    assert len({draw(seed, step) for seed in (0, 1) for step in (0, 1, 2)}) == 6
    assert draw(5, 9) == draw(5, 9)
