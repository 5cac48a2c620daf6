"""Gradient checkpointing and compilation of the networks inside a model: the same numbers, and nothing left behind."""

import pytest
import torch
from diffusers import ConfigMixin, DiTTransformer2DModel, ModelMixin, UNet2DModel
from safetensors.torch import load_file
from small_training import CONFIG, run

from edgediff.errors import BadInputError, StageFailedError
from edgediff.training.checkpoint import FILE_NAME
from edgediff.training.networks import running_as

CHECKPOINTING = CONFIG.model_copy(update={"steps": 3, "gradient_checkpointing": True})


def unet() -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=4,
        in_channels=1,
        out_channels=1,
        block_out_channels=(4, 8),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
    )


class OnVectors(torch.nn.Module):
    """A U-Net inside another module, on the four numbers of the small training as the rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.network = unet()

    def forward(self, inputs):
        image = inputs[:, None, :, None].expand(-1, 1, 4, 4)
        return self.network(image, torch.zeros(len(inputs))).sample.mean((1, 3))


def test_gradient_checkpointing_changes_no_number(tmp_path):
    """Activations are computed again, not differently: bit for bit on a CPU."""
    plain, _ = run(tmp_path / "plain", config=CONFIG.model_copy(update={"steps": 3}), network=OnVectors())
    checkpointed, _ = run(tmp_path / "checkpointed", config=CHECKPOINTING, network=OnVectors())
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), checkpointed.parameters(), strict=True))


class OnPatches(torch.nn.Module):
    """A transformer, whose attention is computed again where it is checkpointed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        heads = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 2}
        self.network = DiTTransformer2DModel(
            **heads, sample_size=4, patch_size=1, in_channels=1, out_channels=1, num_embeds_ada_norm=3
        )

    def forward(self, inputs):
        image = inputs[:, None, :, None].expand(-1, 1, 4, 4)
        nothing = torch.zeros(len(inputs), dtype=torch.long)
        return self.network(image, nothing, class_labels=nothing).sample.mean((1, 3))


@pytest.mark.parametrize("network", [OnVectors, OnPatches])
def test_gradient_checkpointing_changes_no_number_in_halves_either(network, tmp_path):
    """What is computed again in the backward takes the same kernel of attention."""
    trained = []
    for checkpointing in (False, True):
        changes = {"steps": 3, "precision": "bf16", "gradient_checkpointing": checkpointing}
        trained.append(run(tmp_path / str(checkpointing), config=CONFIG.model_copy(update=changes), network=network()))
    (plain, _), (checkpointed, _) = trained
    assert all(torch.equal(*pair) for pair in zip(plain.parameters(), checkpointed.parameters(), strict=True))


def test_gradient_checkpointing_keeps_less():
    """Fewer tensors are held for the backward."""

    def kept(**changes) -> int:
        model, count = OnVectors().train(), 0

        def hold(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        with (
            running_as(model, CONFIG.model_copy(update=changes)),
            torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor),
        ):
            model(torch.randn(8, 4))
        return count

    assert kept(gradient_checkpointing=True) < 0.5 * kept()


def test_a_network_is_left_as_it_was(tmp_path):
    model, _ = run(tmp_path, config=CHECKPOINTING, network=OnVectors())
    assert not model.network.is_gradient_checkpointing
    with running_as(model, CONFIG.model_copy(update={"compile": True})):
        assert "forward" in vars(model.network)
    assert "forward" not in vars(model.network)


class Bare(ModelMixin, ConfigMixin):
    """A network of diffusers' kind that knows no gradient checkpointing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = (torch.nn.Conv1d(1, 4, 3, padding=1), torch.nn.Conv1d(4, 1, 3, padding=1))
        self.inner = torch.nn.Sequential(conv[0], torch.nn.GroupNorm(2, 4), torch.nn.SiLU(), conv[1])

    def forward(self, inputs):
        return self.inner(inputs[:, None])[:, 0]


class TwiceBack(torch.nn.Module):
    """Goes back through its networks' graphs before the loop does, as the gradient norms of a distillation do.

    The second network gets another shape: a graph for shapes that vary is compiled differently.
    """

    def __init__(self) -> None:
        super().__init__()
        self.networks = torch.nn.ModuleList([Bare(), Bare()])

    def forward(self, inputs):
        for network in self.networks:
            inputs = network(inputs.repeat(2, 1))
            torch.autograd.grad(inputs.square().mean(), [*network.parameters()], retain_graph=True)
        return inputs.unflatten(0, (4, -1)).mean(0)


def test_a_network_without_gradient_checkpointing_is_named(tmp_path):
    with pytest.raises(BadInputError, match="Bare knows no gradient checkpointing"):
        run(tmp_path, config=CHECKPOINTING, network=Bare())


def test_a_network_that_cannot_be_compiled_is_told_of(tmp_path, monkeypatch):
    """On a machine without a compiler; nothing that was compiled before is found."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", (str(tmp_path / "no compiler"),))
    with pytest.raises(StageFailedError, match="the network could not be compiled: ") as caught:
        run(tmp_path / "run", config=CONFIG.model_copy(update={"compile": True}), network=Bare())
    assert "compile=false" in caught.value.hint


@pytest.mark.slow
def test_a_compiled_network_trains_to_the_same_weights(tmp_path):
    """Fused kernels round differently: forty steps of Adam make at most 1e-5 of it. Names stay those of the network."""
    plain, _ = run(tmp_path / "plain", network=TwiceBack())
    compiled, _ = run(tmp_path / "compiled", config=CONFIG.model_copy(update={"compile": True}), network=TwiceBack())
    for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    names = [
        set(load_file(folder / "checkpoints" / FILE_NAME)) for folder in (tmp_path / "plain", tmp_path / "compiled")
    ]
    assert names[0] == names[1]
