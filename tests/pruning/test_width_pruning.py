"""Width pruning: stock students, exact copies, whole heads, and equality with the masked teacher."""

import json

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from masked_unets import distance_from_masked_teacher

from edgediff import families
from edgediff.errors import BadInputError, StageFailedError
from edgediff.pruning import check_reached, importance_scores, prune_width, widths_for_ratio
from edgediff.pruning.width import top

UNET = families.FAMILIES["UNet2DModel"]

MAIN = {
    **{"sample_size": 28, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 8},
    "block_out_channels": (32, 64, 128),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
}
# google/ddpm-cifar10-32 and google/ddpm-celebahq-256 in structure: one head, attention in the middle of the levels
CIFAR = {
    **{"sample_size": 32, "layers_per_block": 2, "norm_num_groups": 32, "attention_head_dim": None},
    **{"freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6},
    "block_out_channels": (32, 64, 64, 64),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBA = {
    **CIFAR,
    **{"sample_size": 64, "layers_per_block": 1},
    "block_out_channels": (32, 32, 64, 64, 96),
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
}
LABELLED = {
    **{"sample_size": None, "layers_per_block": 1, "norm_num_groups": 4, "attention_head_dim": 4},
    **{"num_class_embeds": 5, "mid_block_type": None, "time_embedding_dim": 48, "freq_shift": 0},
    "block_out_channels": (16, 48),
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}
CONFIGS = {"main": MAIN, "cifar": CIFAR, "celeba": CELEBA, "labelled": LABELLED}


def teacher_of(config, seed=0):
    torch.manual_seed(seed)
    model = UNet2DModel(**config).eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a wrong slice
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def prune(model, ratio, importance="magnitude", seed=0):
    widths = widths_for_ratio(UNET, model.config, ratio)
    return prune_width(model, UNET, widths, importance_scores(importance, model, UNET, seed=seed))


def small_inputs(config):
    return UNET.example_inputs(config, 2, 4 * 2 ** (len(config["block_out_channels"]) - 1))


@pytest.mark.parametrize("ratio", [0.5, 0.875])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_student_is_a_stock_model_of_exactly_the_asked_widths(name, ratio):
    teacher = teacher_of(CONFIGS[name])
    untouched = {key: value.clone() for key, value in teacher.state_dict().items()}
    student, report = prune(teacher, ratio)

    assert type(student) is UNet2DModel
    stock = UNet2DModel.from_config(dict(student.config))
    assert {k: v.shape for k, v in stock.state_dict().items()} == {k: v.shape for k, v in student.state_dict().items()}
    assert torch.isfinite(UNET.prediction(student, **small_inputs(student.config))).all()
    check_reached(UNET, teacher.config, student.config, ratio)
    assert report.widths == UNET.levels(student.config) == widths_for_ratio(UNET, teacher.config, ratio)
    assert report.params == sum(p.numel() for p in student.parameters()) < report.params_before
    assert report.params / report.params_before < (1 - 0.6 * ratio) ** 2
    assert all(torch.equal(value, untouched[key]) for key, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize("name", CONFIGS)
def test_ratio_0_gives_the_teacher_back(name):
    teacher = teacher_of(CONFIGS[name])
    student, report = prune(teacher, 0)
    inputs = small_inputs(teacher.config)
    assert torch.equal(UNET.prediction(student.eval(), **inputs), UNET.prediction(teacher, **inputs))
    assert report.params == report.params_before
    assert student.config["norm_num_groups"] == teacher.config["norm_num_groups"]
    assert all(group.kept == list(range(group.width)) for group in report.groups)
    shared = {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}
    assert not shared


@pytest.mark.parametrize("ratio", [0.25, 0.75])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_student_equals_the_teacher_with_the_removed_channels_masked(name, ratio):
    teacher = teacher_of(CONFIGS[name])
    assert distance_from_masked_teacher(UNET, teacher, ratio, small_inputs(teacher.config)) < 1e-12  # float64


def kept_of(report, name):
    return next(group.kept for group in report.groups if group.name == name)


def test_heads_are_kept_whole_and_alike_for_queries_and_values():
    teacher = teacher_of(MAIN)
    student, report = prune(teacher, 0.75, "random")
    attentions = [group.name for group in report.groups if group.name.endswith(".to_q")]
    assert len(attentions) == 6  # two down, one in the middle, three up
    for name in attentions:
        kept = kept_of(report, name)
        heads = sorted({index // 8 for index in kept})
        assert len(heads) == 4
        assert kept == [8 * head + channel for head in heads for channel in range(8)]
        assert kept == kept_of(report, name.replace("to_q", "to_v"))
        assert student.get_submodule(name.removesuffix(".to_q")).heads == 4
    assert len({tuple(kept_of(report, name)) for name in attentions}) > 1  # every attention chooses for itself


def test_a_loud_head_survives():
    teacher = teacher_of(MAIN)
    attention = teacher.mid_block.attentions[0]
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k, attention.to_v):
            layer.weight[40:48] *= 10  # head 5
    _, report = prune(teacher, 0.875)  # 2 of 16 heads stay
    assert set(range(40, 48)) <= set(kept_of(report, "mid_block.attentions.0.to_q"))


def test_a_single_head_chooses_queries_and_values_apart():
    teacher = teacher_of(CIFAR)
    attention = teacher.mid_block.attentions[0]
    with torch.no_grad():
        for layer in (attention.to_q, attention.to_k):
            layer.weight[10:20] *= 10
        attention.to_v.weight[30:40] *= 10
    _, report = prune(teacher, 0.5)
    queries = kept_of(report, "mid_block.attentions.0.to_q")
    values = kept_of(report, "mid_block.attentions.0.to_v")
    assert set(range(10, 20)) <= set(queries)
    assert set(range(30, 40)) <= set(values)
    assert queries != values


def test_magnitude_keeps_the_loud_channels_in_the_teachers_order():
    teacher = teacher_of(MAIN)
    loud = [3, 30, 4, 17]
    with torch.no_grad():
        teacher.down_blocks[0].resnets[0].conv1.weight[loud] *= 10
    student, report = prune(teacher, 0.875)
    assert kept_of(report, "down_blocks.0.resnets.0.conv1") == sorted(loud)
    inputs = kept_of(report, "conv_in")
    expected = teacher.down_blocks[0].resnets[0].conv1.weight[sorted(loud)][:, inputs]
    assert torch.equal(student.down_blocks[0].resnets[0].conv1.weight, expected)


def test_one_big_member_does_not_outvote_the_others():
    """conv2 scores ten thousand times what the other members do; the three of them that agree still win."""
    teacher = teacher_of(MAIN)
    scores = {name: torch.ones_like(value) for name, value in teacher.state_dict().items()}
    scores["down_blocks.0.resnets.0.conv2.weight"] *= 1e4
    scores["down_blocks.0.resnets.0.conv2.weight"][:, :4] *= 1.5
    for name in ("conv1.weight", "norm2.weight", "time_emb_proj.weight"):
        scores[f"down_blocks.0.resnets.0.{name}"][20:24] *= 1.5
    widths = widths_for_ratio(UNET, teacher.config, 0.875)
    _, report = prune_width(teacher, UNET, widths, scores)
    assert kept_of(report, "down_blocks.0.resnets.0.conv1") == [20, 21, 22, 23]


def test_top_takes_the_first_of_equals_and_keeps_the_order():
    assert top(torch.tensor([1.0, 5.0, 5.0, 0.0, 5.0]), 2) == [1, 2]
    assert top(torch.tensor([1.0, 9.0, 3.0, 5.0]), 3) == [1, 2, 3]
    assert top(torch.zeros(4), 4) == [0, 1, 2, 3]


def test_pruning_is_deterministic_and_leaves_the_random_state_alone():
    teacher = teacher_of(CIFAR)
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    one, first = prune(teacher, 0.5, "random", seed=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    two, second = prune(teacher, 0.5, "random", seed=3)
    _, other = prune(teacher, 0.5, "random", seed=4)
    assert first == second != other
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_teachers_give_students_of_their_dtype(dtype):
    teacher = UNet2DModel(**CIFAR).to(dtype)
    student, report = prune(teacher, 0.5)
    assert student.dtype == teacher.dtype == dtype
    assert report.bytes == 2 * report.params
    _, same = prune(teacher.float(), 0.5)  # ranked in float32 either way
    assert report.groups == same.groups


def test_the_student_loads_from_a_plain_folder(tmp_path):
    teacher = teacher_of(MAIN)
    student, _ = prune(teacher, 0.75)
    student.save_pretrained(tmp_path)
    loaded, info = UNet2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = UNET.example_inputs(student.config, 2)
    assert torch.equal(UNET.prediction(loaded, **inputs), UNET.prediction(student.eval(), **inputs))
    assert "pkl" not in "".join(path.suffix for path in tmp_path.iterdir())


def test_the_report_survives_json_and_names_every_group():
    teacher = teacher_of(MAIN)
    student, report = prune(teacher, 0.875)
    record = json.loads(json.dumps(report.to_dict()))
    assert record["widths"] == {"down_blocks.0": 4, "down_blocks.1": 8, "down_blocks.2": 16}
    assert record["pruning_ratio"] == {"down_blocks.0": 0.875, "down_blocks.1": 0.875, "down_blocks.2": 0.875}
    assert (record["params_before"], record["params"]) == (3_939_393, 63_465)
    assert (record["bytes_before"], record["bytes"]) == (4 * 3_939_393, 4 * 63_465)
    names = [group["name"] for group in record["groups"]]
    assert len(names) == len(set(names)) == 47  # 41 groups, the six attentions counted twice
    for group in record["groups"]:
        assert group["kept"] == sorted(set(group["kept"]))
        assert len(group["kept"]) == group["width"] / 8
        assert len(group["kept"]) == student.get_submodule(group["name"]).weight.shape[0]


@torch.no_grad()
def test_pruning_works_where_gradients_are_off():
    teacher = teacher_of(LABELLED)
    inputs = UNET.example_inputs(teacher.config, 2, 8)
    extra = {"x0": inputs["sample"], "conditioning": {"class_labels": inputs["class_labels"]}}
    scores = importance_scores("taylor", teacher, UNET, scheduler=DDPMScheduler(4), **extra)
    student, _ = prune_width(teacher, UNET, widths_for_ratio(UNET, teacher.config, 0.5), scores)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_training_mode_follows_the_teacher():
    teacher = teacher_of(LABELLED)
    assert not prune(teacher, 0.5)[0].training
    student, _ = prune(teacher.train(), 0.5)
    assert student.training
    UNET.prediction(student, **small_inputs(student.config)).sum().backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_scores_of_another_model_are_refused():
    teacher, other = teacher_of(MAIN), teacher_of(CIFAR)
    widths = widths_for_ratio(UNET, teacher.config, 0.5)
    with pytest.raises(BadInputError, match=r"importance of conv_in.weight"):
        prune_width(teacher, UNET, widths, importance_scores("magnitude", other, UNET))
    with pytest.raises(BadInputError, match="none"):
        prune_width(teacher, UNET, widths, {})


def test_scores_that_are_not_finite_are_refused_by_name():
    teacher = teacher_of(MAIN)
    scores = dict(importance_scores("magnitude", teacher, UNET))
    scores["mid_block.resnets.0.conv1.bias"][0] = float("nan")
    with pytest.raises(StageFailedError, match=r"mid_block.resnets.0.conv1.bias is not finite"):
        prune_width(teacher, UNET, widths_for_ratio(UNET, teacher.config, 0.5), scores)
