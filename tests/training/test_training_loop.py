"""The training loop: what it computes, what it logs and saves, how it stops, and what it refuses to resume."""

import json
import math
import os
import signal

import pytest
import torch
from safetensors import safe_open
from small_training import CONFIG, IDENTITY, Regression, inputs_at, make_network, plain_network, run, weights

from edgediff.errors import BadInputError, CorruptArtifactError, InterruptedStageError, StageFailedError
from edgediff.recipe import TrainingConfig
from edgediff.training import checkpoint
from edgediff.training.alone import LOCK
from edgediff.training.ema import EMA
from edgediff.training.facts import changed_settings
from edgediff.training.learning_rate import learning_rate, unreached_rate
from edgediff.training.precision import autocast, settled


def changed(**values) -> TrainingConfig:
    return CONFIG.model_copy(update=values)


def log_of(folder):
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def state_of(folder):
    return folder / "checkpoints" / checkpoint.FILE_NAME


def halfway(folder, step=10):
    """A training that SIGINT stopped after `step` steps."""
    with pytest.raises(InterruptedStageError):
        run(folder, before=lambda now: signal.raise_signal(signal.SIGINT) if now == step - 1 else None)


def test_it_is_adam_with_clipping_and_the_schedule(tmp_path):
    """Weights, average and log equal those of the loop that one would write by hand."""
    network, _ = run(tmp_path, network=plain_network())
    plain = Regression(plain_network())
    optimizer = torch.optim.AdamW(plain.parameters(), weight_decay=0.0)
    average = {name: value.detach().clone() for name, value in plain.network.named_parameters()}
    for step, line in enumerate(log_of(tmp_path)):
        optimizer.param_groups[0]["lr"] = learning_rate(step, CONFIG)
        loss, quantities = plain(inputs_at(step, torch.arange(8 * step, 8 * step + 8)))
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), CONFIG.grad_clip)
        optimizer.step()
        decay = min(CONFIG.ema_decay, (1 + step) / (10 + step))
        for name, value in plain.network.named_parameters():
            average[name] = decay * average[name] + (1 - decay) * value.detach()
        # The fused kernel and the plain one round differently; forty steps apart that is 1e-5 at most.
        assert line == {
            "step": step + 1,
            "loss": pytest.approx(loss.item(), rel=1e-4),
            "mean_input": quantities["mean_input"].item(),
            "grad_norm": pytest.approx(norm.item(), rel=1e-3),
            "learning_rate": learning_rate(step, CONFIG),
        }
    assert not network.training
    for name, value in network.named_parameters():
        torch.testing.assert_close(value.detach(), average[name], atol=1e-5, rtol=1e-4)


def test_it_learns(tmp_path):
    losses = [line["loss"] for line in log_of_training(tmp_path, steps=300, ema_decay=0.99, checkpoint_every=300)]
    assert sum(losses[-40:]) < 0.5 * sum(losses[:40])


def log_of_training(folder, **values):
    run(folder, config=changed(**values))
    return log_of(folder)


def test_a_rate_that_a_short_training_never_reaches_is_told():
    short = TrainingConfig(steps=49, warmup_steps=99, learning_rate=1e-3)
    (words,) = unreached_rate(short)
    assert "only rises to 0.00049, not to 0.001" in words
    assert unreached_rate(short.model_copy(update={"warmup_steps": 48})) == []


def test_the_learning_rate_of_every_step():
    config = changed(steps=104, warmup_steps=4, learning_rate=1.0)
    assert [learning_rate(step, config) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert learning_rate(29, config) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert learning_rate(54, config) == pytest.approx(0.5)
    assert 0 < learning_rate(103, config) < 1e-3  # the last step still moves
    constant = changed(lr_schedule="constant", warmup_steps=1, learning_rate=0.3)
    assert [learning_rate(step, constant) for step in (0, 1, 1000)] == pytest.approx([0.15, 0.3, 0.3])


def test_the_average_equals_a_plain_loop():
    """Early the decay is (1 + step) / (10 + step), so that a short run forgets its start; then the one asked for."""
    model = torch.nn.Linear(1, 1, bias=False)
    ema = EMA(model, 0.8)
    expected = model.weight.item()
    for step in range(50):
        with torch.no_grad():
            model.weight.fill_(math.sin(step))
        ema.update(step)
        decay = (1 + step) / (10 + step) if step < 35 else 0.8  # they cross at step 35
        expected = decay * expected + (1 - decay) * math.sin(step)
    assert ema.average["weight"].item() == pytest.approx(expected, rel=1e-5)
    ema.copy_to(model)
    assert model.weight.item() == ema.average["weight"].item()


def test_a_snapshot_is_the_average_of_its_step_and_leaves_the_training_as_it_was(tmp_path):
    config = changed(lr_schedule="constant")  # the cosine's shape depends on the steps
    seen = {}
    network, _ = run(
        tmp_path / "watched",
        config=config,
        snapshots=(7, 8, 40),
        on_snapshot=lambda step, model: seen.update({step: weights(model)}),
    )
    unwatched, _ = run(tmp_path / "unwatched", config=config)
    assert weights(network) == weights(unwatched) == seen[40] and log_of(tmp_path / "watched") == log_of(
        tmp_path / "unwatched"
    )
    short, _ = run(tmp_path / "short", config=changed(lr_schedule="constant", steps=7))
    assert list(seen) == [7, 8, 40] and seen[7] == weights(short) != seen[8]


def test_a_snapshot_that_was_interrupted_is_made_again_and_the_same(tmp_path):
    seen = []

    def fail_once(step, model):
        seen.append((step, weights(model)))
        if len(seen) == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(tmp_path, snapshots=(4, 8, 12), on_snapshot=fail_once)  # states are saved at the very same steps
    assert checkpoint.finished_steps(tmp_path / "checkpoints") == 4
    run(tmp_path, resume=True, snapshots=(4, 8, 12), on_snapshot=fail_once)
    assert [step for step, _ in seen] == [4, 8, 8, 12] and seen[1] == seen[2]


def test_the_state_has_its_agreed_form(tmp_path):
    """States of longer trainings outlive changes of the code, so the names in the file are a format."""
    halfway(tmp_path)
    with safe_open(state_of(tmp_path), framework="pt") as file:
        names, facts = set(file.keys()), json.loads(file.metadata()["facts"])
    model = Regression(make_network())
    parameters = [name for name, _ in model.named_parameters()]
    moments = ("step", "exp_avg", "exp_avg_sq")
    assert names == {
        *(f"model.{name}" for name in model.state_dict()),
        *(f"ema.{name}" for name in parameters),
        *(f"optimizer.{index}.{moment}" for index in range(len(parameters)) for moment in moments),
    }
    adjustable = {
        "steps": 40,
        "batch_size": 8,
        "gradient_accumulation": 1,
        "learning_rate": 1e-2,
        "lr_schedule": "cosine",
        "warmup_steps": 3,
        "grad_clip": 1.0,
        "gradient_checkpointing": False,
        "compile": False,
        "checkpoint_every": 4,
        "trackers": [],
    }
    fixed = {"weight_decay": 0.0, "ema_decay": 0.9, "precision": "fp32", "seed": 5, "global_batch": 8}
    assert facts["counts"].pop("seconds") > 0 and len(facts.pop("run")) == 32
    assert facts == {
        "identity": {**IDENTITY, "training": fixed},
        "step": 10,
        "counts": {"steps": 10},
        "resumed_at": [],
        "settings": [{"from_step": 0, **adjustable, "processes": 1}],
    }


def test_ctrl_c_saves_the_state_and_changes_nothing(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def press(step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(InterruptedStageError, match="step 10 of 40") as caught:
        run(tmp_path / "stopped", before=press)
    assert "--resume" in caught.value.hint
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.read_facts(state_of(tmp_path / "stopped"))["step"] == 10
    resumed, result = run(tmp_path / "stopped", resume=True)
    straight, _ = run(tmp_path / "straight")
    assert result.resumed_at == [10]
    assert weights(resumed) == weights(straight)
    assert log_of(tmp_path / "stopped") == log_of(tmp_path / "straight")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def press_twice(step):
        if step == 6:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, before=press_twice)
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoint.read_facts(state_of(tmp_path))["step"] == 4


def test_ctrl_c_while_the_last_state_is_written_is_not_lost(tmp_path, monkeypatch):
    save = checkpoint.save

    def pressed(path, *, facts, **state):
        save(path, facts=facts, **state)
        if facts["step"] == CONFIG.steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint, "save", pressed)
    with pytest.raises(InterruptedStageError, match="step 40 of 40"):
        run(tmp_path)
    monkeypatch.undo()
    model, result = run(tmp_path, resume=True)
    assert result.counts["steps"] == 40 and result.resumed_at == [40]
    assert weights(model) == weights(run(tmp_path / "straight")[0])


class Breaking(torch.nn.Module):
    """Weights of another size, through which loss and gradient stop being numbers where `broken` says so."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = make_network()
        self.factor = 1.0

    def forward(self, inputs):
        return self.inner(inputs) * self.factor


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_a_non_finite_loss_leaves_the_last_good_state(tmp_path, value):
    """1e30 is finite; the square of what it multiplies is not."""

    def breaks_at(step):
        return lambda now: setattr(network, "factor", value if now == step else 1.0)

    network = Breaking()
    with pytest.raises(StageFailedError, match=r"non-finite value at step 7 \(loss .*rolled back to step 4") as caught:
        run(tmp_path, network=network, before=breaks_at(6))
    assert "--resume" in caught.value.hint and "0.003" in caught.value.hint
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4]
    saved = checkpoint.read_facts(state_of(tmp_path))
    assert saved["step"] == 4

    network = Breaking()
    with pytest.raises(StageFailedError, match="step 5") as caught:
        run(tmp_path, network=network, before=breaks_at(4), resume=True)
    assert "saved state itself" in caught.value.hint

    network = Breaking()
    _, result = run(tmp_path, network=network, config=changed(learning_rate=1e-3), resume=True)
    assert [(part["from_step"], part["learning_rate"]) for part in result.settings] == [(0, 1e-2), (4, 1e-3)]
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 41))
    assert all(torch.isfinite(parameter).all() for parameter in network.parameters())


def test_two_trainings_in_one_folder_are_noticed(tmp_path):
    """While a training is at it; what it leaves behind, killed or not, is in nobody's way."""

    def another(step):
        if step == 5:
            with pytest.raises(BadInputError, match="another training is writing here") as caught:
                run(tmp_path, resume=True)
            assert "--resume" in caught.value.hint

    run(tmp_path, before=another)
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 41))
    run(tmp_path, resume=True, config=changed(steps=44))
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 45))


def test_settings_that_change_on_the_way_are_told(tmp_path):
    state = state_of(tmp_path)
    assert changed_settings(state, CONFIG) == []
    halfway(tmp_path)
    assert changed_settings(state, changed(checkpoint_every=7)) == []
    (words,) = changed_settings(state, changed(steps=80, learning_rate=1e-3))
    assert "steps 40 → 80" in words and "learning_rate 0.01 → 0.001" in words


@pytest.mark.parametrize(
    ("key", "what"), [("images", "the images"), ("pruned", "the pruned model"), ("data", "the recipe")]
)
def test_what_has_changed_under_a_training_is_named(tmp_path, key, what):
    halfway_identity = {**IDENTITY, "images": "0" * 64, "pruned": "0" * 64}
    with pytest.raises(InterruptedStageError):
        run(
            tmp_path,
            identity=halfway_identity,
            before=lambda now: signal.raise_signal(signal.SIGINT) if now == 5 else None,
        )
    with pytest.raises(BadInputError, match="another training") as caught:
        run(tmp_path, identity={**halfway_identity, key: "1" * 64}, resume=True)
    assert f"resume with {what} it was started with" in caught.value.hint
    assert (f"other {what[4:]}" in caught.value.message) == (key != "data") != ("1111" in caught.value.message)


def test_what_is_learned_from_is_not_blamed_on_the_learning_rate(tmp_path):
    def spoiled(step, positions):
        return inputs_at(step, positions) * (math.inf if step == 6 else 1)

    with pytest.raises(StageFailedError, match=r"not finite at step 7 \(batch\); rolled back to step 4") as caught:
        run(tmp_path, inputs=spoiled)
    assert "a lower learning rate would not help" in caught.value.hint
    assert [line["step"] for line in log_of(tmp_path)] == [1, 2, 3, 4]
    _, result = run(tmp_path, resume=True)
    assert result.resumed_at == [4]


def test_an_infinite_gradient_of_a_finite_loss_is_found(tmp_path):
    class Root(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(4))

        def forward(self, inputs):
            return inputs + self.weight.abs().sqrt()  # slope infinite at 0

    with pytest.raises(StageFailedError, match=r"step 1 \(grad_norm"):
        run(tmp_path, network=Root())
    assert not state_of(tmp_path).exists() and log_of(tmp_path) == []


def test_what_is_counted_is_of_the_whole_training_in_whatever_parts(tmp_path):
    """Steps behind the last state are trained again, and count once."""
    seen = []

    def broken(step):
        seen.append(step)
        if step == 10:
            raise MemoryError

    with pytest.raises(MemoryError):
        run(tmp_path, before=broken, counts=lambda: {"seen": len(seen)})
    first = checkpoint.read_facts(state_of(tmp_path))["counts"]
    assert (first["steps"], first["seen"]) == (8, 8)
    seen.clear()
    _, result = run(tmp_path, resume=True, before=seen.append, counts=lambda: {"seen": len(seen)})
    assert (result.counts["steps"], result.counts["seen"]) == (40, 40)
    assert result.counts["seconds"] > first["seconds"]
    assert result.steps_per_second == 40 / result.counts["seconds"]


def test_what_may_change_on_resuming_and_what_may_not(tmp_path):
    halfway(tmp_path)
    for values, named in (
        ({"batch_size": 4}, r"\(training.global_batch 8 → 4\)"),
        ({"gradient_accumulation": 2}, r"\(training.global_batch 8 → 16\)"),
        ({"seed": 6, "precision": "bf16"}, r"\(training.precision fp32 → bf16; training.seed 5 → 6\)"),
    ):
        with pytest.raises(BadInputError, match=named) as caught:
            run(tmp_path, config=changed(**values), resume=True)
        assert "recipe it was started with" in caught.value.hint
        assert ("batch_size x gradient_accumulation x processes" in caught.value.hint) == ("seed" not in values)
        assert ("it began with `precision=fp32`" in caught.value.hint) == ("precision" in values)
    with pytest.raises(BadInputError, match=r"\(data inputs → others; distill.kd.place 1.0 → not given\)"):
        run(tmp_path, identity={"data": "others", "distill": {"kd": {}}}, resume=True)
    with pytest.raises(BadInputError, match="step 10, beyond the 8 steps"):
        run(tmp_path, config=changed(steps=8), resume=True)
    _, result = run(tmp_path, config=changed(steps=44, lr_schedule="constant"), resume=True)
    assert result.steps == 44
    assert [(part["from_step"], part["steps"]) for part in result.settings] == [(0, 40), (10, 44)]


def test_an_unfinished_training_is_not_overwritten(tmp_path):
    halfway(tmp_path)
    content = state_of(tmp_path).read_bytes()
    with pytest.raises(BadInputError, match="an unfinished training stands at step 10") as caught:
        run(tmp_path)
    assert "--resume" in caught.value.hint
    assert state_of(tmp_path).read_bytes() == content and len(log_of(tmp_path)) == 10


@pytest.mark.parametrize("keep", [0, 5, 400, -1])
def test_a_truncated_state_is_named(tmp_path, keep):
    halfway(tmp_path)
    state_of(tmp_path).write_bytes(state_of(tmp_path).read_bytes()[:keep])
    with pytest.raises(CorruptArtifactError, match=r"training\.safetensors") as caught:
        run(tmp_path, resume=True)
    assert "delete it" in caught.value.hint


@pytest.mark.parametrize(
    "ending", ['{"step": 11, "lo', '{"step": 11, "loss": 1.0}\n{"step": 12}\n', "\0\0\0\n", '"text"\n']
)
def test_what_a_kill_leaves_in_the_log_goes(tmp_path, ending):
    halfway(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write(ending)
    run(tmp_path, resume=True)
    run(tmp_path / "straight")
    assert log_of(tmp_path) == log_of(tmp_path / "straight")


def test_a_log_without_its_state_starts_again(tmp_path):
    halfway(tmp_path)
    state_of(tmp_path).unlink()
    run(tmp_path)
    assert [line["step"] for line in log_of(tmp_path)] == list(range(1, 41))


def test_every_step_is_told_of(tmp_path):
    records = []
    run(tmp_path, on_step=records.append)
    assert [record.step for record in records] == list(range(1, 41))
    assert [record.values for record in records] == [
        {name: value for name, value in line.items() if name != "step"} for line in log_of(tmp_path)
    ]
    assert all(record.seconds > 0 for record in records)


def test_a_full_disk_names_the_state_and_keeps_the_last_one(tiny_disk):
    """A state of about 150 KiB fits once on 256 KiB, its successor beside it does not."""
    with pytest.raises(StageFailedError, match=r"no space left while writing: .*training\.safetensors"):
        run(tiny_disk, network=make_network(width=1000))
    assert checkpoint.read_facts(state_of(tiny_disk))["step"] == 4
    assert sorted(os.listdir(tiny_disk / "checkpoints")) == [LOCK, checkpoint.FILE_NAME]
    _, result = run(tiny_disk, network=make_network(width=1000), resume=True, config=changed(steps=4))
    assert result.resumed_at == [4]


def test_sigterm_is_an_interruption_too(tmp_path):
    """However often it comes: launchers pass on what others have sent already."""
    before = signal.getsignal(signal.SIGTERM)

    def end(step):
        if step == 6:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(InterruptedStageError, match="step 7 of 40"):
        run(tmp_path, before=end)
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoint.read_facts(state_of(tmp_path))["step"] == 7


def test_accumulating_two_halves_is_one_batch(tmp_path):
    """Equal up to the order of summation: 1e-7 a step relative, after forty steps of Adam 1e-5 at most."""
    whole, result = run(tmp_path / "whole", network=plain_network())
    halves, _ = run(tmp_path / "halves", network=plain_network(), config=changed(batch_size=4, gradient_accumulation=2))
    assert result.global_batch == 8
    for one, other in zip(whole.parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    for one, other in zip(log_of(tmp_path / "whole"), log_of(tmp_path / "halves"), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-6)


def test_accumulation_resumes_bit_for_bit(tmp_path):
    """With dropout in it: every forward has its own random numbers, a function of its place in the batch."""
    config = changed(batch_size=4, gradient_accumulation=2, lr_schedule="constant")
    run(tmp_path / "a", config=config.model_copy(update={"steps": 10}))
    resumed, _ = run(tmp_path / "a", config=config, resume=True)
    assert weights(resumed) == weights(run(tmp_path / "b", config=config)[0])
    assert log_of(tmp_path / "a") == log_of(tmp_path / "b")


def test_dropout_differs_between_the_forwards_of_an_update(tmp_path):
    seen = []

    class Watched(torch.nn.Dropout):
        def forward(self, inputs):
            seen.append(super().forward(torch.ones(64)) > 0)
            return inputs

    network = torch.nn.Sequential(Watched(), torch.nn.Linear(4, 4))
    run(tmp_path, network=network, config=changed(steps=3, batch_size=4, gradient_accumulation=2))
    assert len({tuple(mask.tolist()) for mask in seen}) == 6


def test_auto_is_bf16_only_where_the_device_has_units_for_it(monkeypatch):
    for capabilities, chosen in (({"amx_bf16": True}, "bf16"), ({"avx2": True, "amx_bf16": False}, "fp32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=capabilities: found)
        assert settled(changed(precision="auto"), torch.device("cpu")).precision == chosen
    assert settled(changed(precision="fp32"), torch.device("cpu")) == changed(precision="fp32")


def test_a_training_in_auto_is_one_in_the_precision_that_it_settles_on(tmp_path):
    own = settled(changed(precision="auto"), torch.device("cpu")).precision
    for precision in ("auto", own):
        run(tmp_path / precision, config=changed(steps=2, precision=precision))
    logs = [(tmp_path / precision / "train.jsonl").read_text() for precision in ("auto", own)]
    assert logs[0] == logs[1]


def test_precision_is_that_of_the_forward():
    matrix = torch.randn(4, 4)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)):
        with autocast(precision, torch.device("cpu")):
            assert (matrix @ matrix).dtype == dtype
    assert (matrix @ matrix).dtype == torch.float32


def test_batches_are_made_in_the_precision_of_the_training(tmp_path):
    """The teacher of a distillation runs while its batch is made."""
    seen = set()
    matrix = torch.randn(4, 4)
    for precision in ("bf16", "fp32"):  # both in one process
        run(
            tmp_path / precision,
            config=changed(steps=1, precision=precision),
            before=lambda _: seen.add((matrix @ matrix).dtype),
        )
    assert seen == {torch.bfloat16, torch.float32}


def test_fp16_needs_an_nvidia_gpu(tmp_path):
    with pytest.raises(
        BadInputError, match="fp16 trains on NVIDIA GPUs only, and this training runs on: cpu"
    ) as caught:
        run(tmp_path, config=changed(precision="fp16"))
    assert "bf16" in caught.value.hint and not (tmp_path / "train.jsonl").exists()


@pytest.mark.gpu
def test_fp16_resumes_with_its_loss_scale(tmp_path):
    """The first steps overflow under the first scale of 65536, are skipped, and halve it."""

    class Large(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = plain_network()

        def forward(self, inputs):
            return self.inner(inputs) * 30

    config = changed(precision="fp16", lr_schedule="constant")
    straight, _ = run(tmp_path / "straight", config=config, network=Large().cuda())
    run(tmp_path / "halves", config=config.model_copy(update={"steps": 20}), network=Large().cuda())
    resumed, _ = run(tmp_path / "halves", config=config, network=Large().cuda(), resume=True)
    assert weights(resumed) == weights(straight)
    assert log_of(tmp_path / "halves") == log_of(tmp_path / "straight")
    first, *_, last = log_of(tmp_path / "straight")
    assert first["loss_scale"] == 65536 and "grad_norm" not in first
    assert last["loss_scale"] < 65536 and last["grad_norm"] > 0


def test_a_training_whose_identity_says_how_often_norms_are_logged_goes_on(tmp_path):
    logged = {"distill": {"kd": {}, "gradient_norms_every": 100}}
    run(tmp_path, config=changed(steps=2), identity=logged)
    _, result = run(tmp_path, config=changed(steps=4), identity=logged, resume=True)
    assert result.resumed_at == [2]
