"""Small models for tests of depth: a DiT and an MMDiT of four blocks, U-Nets in the shape of SD and SDXL."""

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import nn

from edgediff.families import FAMILIES

DIT, MMDIT = FAMILIES["DiTTransformer2DModel"], FAMILIES["SD3Transformer2DModel"]
CONDITIONAL = FAMILIES["UNet2DConditionModel"]
WITHOUT_TEXT, WITH_TEXT = ("DownBlock2D", "UpBlock2D"), ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D")


def dit(seed=0, layers=4):
    torch.manual_seed(seed)
    model = DiTTransformer2DModel(
        **{"num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 1, "out_channels": 1, "patch_size": 2},
        **{"num_layers": layers, "sample_size": 8, "num_embeds_ada_norm": 4, "norm_type": "ada_norm_zero"},
    )
    for block in model.transformer_blocks[1:]:  # copies of one another, as in weights of the original implementation
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def mmdit(seed=0):
    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        **{"sample_size": 8, "patch_size": 2, "in_channels": 2, "out_channels": 2, "num_layers": 4},
        **{"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16},
        **{"joint_attention_dim": 12, "pooled_projection_dim": 10, "pos_embed_max_size": 8},
        **{"dual_attention_layers": (0, 1), "qk_norm": "rms_norm"},
    )
    return model.eval()


def text_unet(levels, widths, seed=0, **changes):
    """Return a U-Net with two layers a level; `levels`: for each, the types of its down and up block."""
    torch.manual_seed(seed)
    model = UNet2DConditionModel(
        **{"sample_size": 8, "in_channels": 1, "out_channels": 1, "norm_num_groups": 2, "attention_head_dim": 2},
        **{"block_out_channels": widths, "cross_attention_dim": 6, "layers_per_block": 2},
        down_block_types=tuple(down for down, _ in levels),
        up_block_types=tuple(up for _, up in reversed(levels)),
        **changes,
    )
    return model.eval()


def small_sd():
    return text_unet((WITH_TEXT,) * 3 + (WITHOUT_TEXT,), (4, 4, 8, 8))


def small_sdxl():
    return text_unet((WITHOUT_TEXT, WITH_TEXT), (4, 8), transformer_layers_per_block=(1, 3))


def silence(model, block):
    """Zero everything that a block adds to its streams, so that it is the identity."""
    for name, layer in model.get_submodule(block).named_modules():
        if name.endswith(("to_out.0", "to_add_out", "net.2")):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
