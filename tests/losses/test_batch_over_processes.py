"""Two processes with half a batch each give the loss and gradient of one with the whole."""

import pytest
import torch
from torch import distributed, multiprocessing

from edgediff.losses import place
from edgediff.losses.terms import batch_mean, batch_sum


def halves(student, teacher, folder, rank):
    """One of two processes: leave its loss terms, gradient, and mean and sum of its rank."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    student = student.chunk(2)[rank].clone().requires_grad_()
    terms = place(student, teacher.chunk(2)[rank], group_size=4)
    terms.total.mean().backward()
    value = torch.tensor(float(rank + 1))
    what = {
        **{"total": terms.total.detach(), "fine_weight": terms.fine_weight, "gradient": student.grad},
        **{"mean": batch_mean(value), "sum": batch_sum(value), "value": value},
    }
    torch.save(what, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_halves_are_one_batch(maps, tmp_path):
    student, teacher = maps((4, 2, 6, 6))
    student[2:] *= 0.9  # the halves alone would have other weights
    context = multiprocessing.get_context("spawn")
    ranks = [context.Process(target=halves, args=(student, teacher, str(tmp_path), rank)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    assert [process.exitcode for process in ranks] == [0, 0]

    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    student.requires_grad_()
    whole = place(student, teacher, group_size=4)
    whole.total.mean().backward()
    # float64: only the order of additions differs
    torch.testing.assert_close(torch.cat([first["total"], second["total"]]), whole.total.detach())
    assert first["fine_weight"].item() == pytest.approx(whole.fine_weight.item(), rel=1e-12)
    # Each process averages over its half: its gradient is twice its share of the whole batch's.
    torch.testing.assert_close(torch.cat([first["gradient"], second["gradient"]]) / 2, student.grad)
    alone = [
        place(half, other, group_size=4).fine_weight
        for half, other in zip(student.chunk(2), teacher.chunk(2), strict=True)
    ]
    assert alone[0].item() != pytest.approx(alone[1].item(), rel=1e-3)
    assert [(what["mean"].item(), what["sum"].item(), what["value"].item()) for what in (first, second)] == [
        (1.5, 3, 1),
        (1.5, 3, 2),
    ]


def test_alone_a_value_is_its_own_mean():
    value = torch.tensor(0.25)
    assert batch_mean(value) is value
    assert batch_sum(value) is value
