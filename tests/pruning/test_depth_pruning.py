"""Depth pruning: stock students, exact copies, and equality with the teacher whose blocks are bypassed."""

import json

import pytest
import torch
from depth_models import CONDITIONAL, DIT, MMDIT, dit, mmdit, small_sd, small_sdxl
from diffusers import DiTTransformer2DModel, UNet2DModel

from edgediff import families
from edgediff.errors import BadInputError
from edgediff.families import DepthCut
from edgediff.pruning import choose_blocks, prune_depth, published_cut
from edgediff.pruning.depth import without
from edgediff.recipe import DepthConfig

UNET = families.FAMILIES["UNet2DModel"]
TRANSFORMERS = {"dit": (DIT, dit), "mmdit": (MMDIT, mmdit)}


def unet(seed=0):
    torch.manual_seed(seed)
    return UNet2DModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 2, "norm_num_groups": 2},
        **{"block_out_channels": (4, 8), "attention_head_dim": 4},
        **{"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")},
    ).eval()


def pruned(family, model, removed):
    return prune_depth(model, family, family.without_blocks(model.config, removed))


def bypass(model, block):
    """Let a block's input pass it by."""

    def hook(module, args, kwargs, output):
        if isinstance(output, tuple):
            return kwargs["encoder_hidden_states"], kwargs["hidden_states"]
        return args[0]

    model.get_submodule(block).register_forward_hook(hook, with_kwargs=True)


@torch.no_grad()
def predict(family, model):
    return family.prediction(model, **family.example_inputs(model.config, 2))


@pytest.mark.parametrize(("family", "build"), [*TRANSFORMERS.values(), (UNET, unet)], ids=[*TRANSFORMERS, "unet"])
def test_nothing_removed_gives_the_teacher_back(family, build):
    teacher = build()
    student, report = pruned(family, teacher, ())
    assert torch.equal(predict(family, student), predict(family, teacher))
    assert report.kept == family.blocks(teacher.config) and report.removed == ()
    assert report.params == report.params_before
    assert not {p.data_ptr() for p in student.parameters()} & {p.data_ptr() for p in teacher.parameters()}


@pytest.mark.parametrize("removed", [(0,), (2,), (0, 1), (0, 2)], ids=str)
@pytest.mark.parametrize(("family", "build"), TRANSFORMERS.values(), ids=TRANSFORMERS)
def test_the_student_is_the_teacher_with_the_removed_blocks_bypassed(family, build, removed):
    teacher = build()
    names = [f"transformer_blocks.{i}" for i in removed]
    student, report = pruned(family, teacher, names)
    assert type(student) is type(teacher)
    assert student.config["num_layers"] == 4 - len(removed)
    assert report.removed == tuple(names) and set(report.kept).isdisjoint(names)
    assert report.params == sum(p.numel() for p in student.parameters()) < report.params_before
    for name in names:
        bypass(teacher, name)
    # The same sums in the same order: equal to the last bit.
    assert torch.equal(predict(family, student), predict(family, teacher))


def test_every_block_of_a_unet_can_go_and_what_stays_is_copied():
    teacher = unet()
    blocks = UNET.blocks(teacher.config)
    assert len(blocks) > 1
    whole = predict(UNET, teacher)
    for block in blocks:
        student, report = pruned(UNET, teacher, {block})
        assert report.removed == (block,)
        assert not torch.equal(predict(UNET, student), whole)
        values = {value.sum().item() for value in teacher.state_dict().values()}
        assert all(value.sum().item() in values for value in student.state_dict().values())


@pytest.mark.parametrize("rule", ["bk_base", "bk_small", "bk_tiny"])
def test_a_published_rule_gives_a_stock_student_of_the_teachers_tensors(rule):
    teacher = small_sd()
    student, report = prune_depth(teacher, CONDITIONAL, published_cut(CONDITIONAL, teacher.config, rule))
    assert torch.isfinite(predict(CONDITIONAL, student)).all()
    assert report.params < report.params_before
    assert set(report.removed).isdisjoint(report.kept)
    assert ("mid_block" in report.kept) == (rule == "bk_base")
    assert any("down_blocks.3" in block for block in report.removed)
    assert torch.equal(student.down_blocks[0].resnets[0].conv1.weight, teacher.down_blocks[0].resnets[0].conv1.weight)


@pytest.mark.parametrize("remove", [0.2, 0.5, 0.8])
def test_of_blocks_within_blocks_as_many_are_gone_as_were_asked_for(remove):
    teacher = small_sdxl()
    blocks = CONDITIONAL.blocks(teacher.config)
    assert any(".transformer_blocks." in block for block in blocks)
    importance = dict(zip(blocks, torch.rand(len(blocks)).tolist(), strict=True))
    chosen = choose_blocks(CONDITIONAL, teacher.config, DepthConfig(remove=remove), importance)
    student, report = pruned(CONDITIONAL, teacher, chosen)
    assert len(report.removed) == int(len(blocks) * remove + 0.5)
    assert torch.isfinite(predict(CONDITIONAL, student)).all()


def test_the_teacher_and_the_random_state_are_left_alone():
    teacher = dit()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    state = torch.random.get_rng_state()
    student, _ = pruned(DIT, teacher.train(), {"transformer_blocks.1"})
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.zero_()
    assert student.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_a_model_to_look_at_shares_its_weights():
    teacher = dit()
    student = without(teacher, DIT, {"transformer_blocks.0"})
    own = {p.data_ptr() for p in student.parameters()}
    assert own < {p.data_ptr() for p in teacher.parameters()}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_teachers_give_students_of_their_dtype(dtype):
    student, report = pruned(DIT, dit().to(dtype), {"transformer_blocks.1"})
    assert {value.dtype for value in student.state_dict().values()} == {dtype}
    assert report.bytes == 2 * report.params


def test_the_student_loads_from_a_plain_folder(tmp_path):
    student, report = pruned(DIT, dit(), {"transformer_blocks.0", "transformer_blocks.3"})
    student.save_pretrained(tmp_path)
    loaded, info = DiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(predict(DIT, loaded.eval()), predict(DIT, student))
    assert json.loads(json.dumps(report.to_dict()))["removed"] == ["transformer_blocks.0", "transformer_blocks.3"]


def test_the_longest_prefix_names_the_source():
    """Block 0 of the student is the teacher's block 2, but for its label embedding, which is that of block 1."""
    teacher = dit()
    cut = DIT.without_blocks(teacher.config, {"transformer_blocks.0", "transformer_blocks.1"})
    finer = {"transformer_blocks.0.norm1.emb.class_embedder": "transformer_blocks.1.norm1.emb.class_embedder"}
    with torch.no_grad():
        teacher.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight.fill_(7)
    student, report = prune_depth(teacher, DIT, DepthCut(cut.config, {**cut.sources, **finer}))
    first = student.transformer_blocks[0]
    assert (first.norm1.emb.class_embedder.embedding_table.weight == 7).all()
    assert torch.equal(first.attn1.to_q.weight, teacher.transformer_blocks[2].attn1.to_q.weight)
    assert report.removed == ("transformer_blocks.0",)  # something of block 1 is left


def test_a_cut_that_forgets_a_tensor_or_gives_another_shape_is_an_error():
    teacher = dit()
    config = {**DIT.without_blocks(teacher.config, ()).config, "num_layers": 5}
    with pytest.raises(RuntimeError, match=r"transformer_blocks\.4"):
        prune_depth(teacher, DIT, DepthCut(config, {}))
    with pytest.raises(RuntimeError, match="size mismatch"):
        prune_depth(teacher, DIT, DepthCut(dict(teacher.config), {"proj_out_2": "proj_out_1"}))


def test_unknown_blocks_and_the_last_block_are_refused():
    teacher = dit()
    with pytest.raises(BadInputError, match="cannot be removed"):
        without(teacher, DIT, {"transformer_blocks.9"})
    with pytest.raises(BadInputError, match="no block would stay"):
        without(teacher, DIT, DIT.blocks(teacher.config))
