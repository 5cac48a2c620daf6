"""The order in which training visits images."""

import pytest
import torch

from edgediff.data import order
from edgediff.data.order import mixed, step_generator, visited


@pytest.fixture
def drawn(monkeypatch):
    """The sizes of all permutations that are drawn, with none kept before."""
    monkeypatch.setattr(order, "_permutations", order._Permutations())
    found, draw = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda count, **options: found.append(count) or draw(count, **options))
    return found


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


def test_the_order_is_the_one_that_states_and_results_were_made_with():
    assert visited(torch.arange(0, 60, 7), count=13, seed=5).tolist() == [9, 4, 9, 1, 0, 5, 6, 11, 9]
    for seed in (0, 7):
        epochs = [torch.randperm(100, generator=torch.Generator().manual_seed(mixed(seed, epoch))) for epoch in (0, 1)]
        assert torch.equal(visited(torch.arange(200), count=100, seed=seed), torch.cat(epochs))


def test_no_permutation_is_drawn_twice_for_targets_of_many_epochs(drawn):
    """In a later epoch over a target cache every batch looks at images of all epochs that its targets went over."""
    entries = torch.randperm(2000)
    drawn.clear()
    for batch in entries.split(50):
        visited(batch, count=100, seed=0)
    assert drawn == [100] * 20


def test_permutations_that_are_kept_have_a_bound(drawn, monkeypatch):
    monkeypatch.setattr(order, "KEPT_BYTES", 10 * 100 * 4)
    for _ in range(2):
        visited(torch.arange(1000), count=100, seed=0)
    assert drawn == [100] * 10
    visited(torch.arange(1000, 1100), count=100, seed=0)
    visited(torch.arange(100, 1100), count=100, seed=0)
    assert drawn == [100] * 11  # the eleventh took the place of the one that was not asked for longest
    assert order._permutations.bytes == 10 * 100 * 4


def test_a_batch_and_the_next_draw_a_permutation_once_however_large_it_is(drawn, monkeypatch):
    monkeypatch.setattr(order, "KEPT_BYTES", 0)
    for positions in torch.arange(300).split(30):
        visited(positions, count=100, seed=0)
    assert drawn == [100] * 3


def test_the_generators_of_steps_differ_and_repeat():
    def draw(seed, step):
        return tuple(torch.randn(3, generator=step_generator(seed, step)).tolist())

    assert len({draw(seed, step) for seed in (0, 1) for step in (0, 1, 2)}) == 6
    assert draw(5, 9) == draw(5, 9)
