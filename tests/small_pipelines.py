"""Stock pipelines of tiny untrained networks, saved as real folders: SD, SDXL and SD 3."""

import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

TOKENS = 8  # that CLIP reads of a caption, its beginning and its end among them
RESOLUTION = 16
LATENTS = (4, 8, 8)


def autoencoder(seed=0, **config):
    """A VAE that halves the sides of images."""
    torch.manual_seed(seed)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**blocks, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, **config).eval()


def clip_tokenizer(folder):
    """A tokenizer of single letters and one word, from a vocabulary and merges written by hand."""
    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>", "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": TOKENS}))
    return CLIPTokenizer.from_pretrained(folder)


def clip(kind, width, seed, vocabulary):
    torch.manual_seed(seed)
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    start, end = vocabulary - 2, vocabulary - 1
    tokens = {"vocab_size": vocabulary, "bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = CLIPTextConfig(**sizes, **tokens, max_position_embeddings=TOKENS, projection_dim=width)
    return kind(config).eval()


def unet(width, **config):
    torch.manual_seed(7)
    blocks = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    sizes = {"block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1, "attention_head_dim": 4}
    return UNet2DConditionModel(**blocks, **sizes, sample_size=LATENTS[1], cross_attention_dim=width, **config).eval()


def stable_diffusion(folder, seed=0):
    tokenizer = clip_tokenizer(folder.parent / f"{folder.name} vocabulary")
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(seed),
        text_encoder=clip(CLIPTextModel, 8, seed, len(tokenizer)),
        tokenizer=tokenizer,
        unet=unet(8),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def stable_diffusion_xl(folder):
    tokenizer = clip_tokenizer(folder.parent / f"{folder.name} vocabulary")
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=clip(CLIPTextModel, 8, 1, len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=clip(CLIPTextModelWithProjection, 16, 2, len(tokenizer)),
        tokenizer_2=tokenizer,
        unet=unet(
            8 + 16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=16 + 6 * 4,
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        add_watermarker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder


def stable_diffusion_3(folder, with_t5=True):
    tokenizer = clip_tokenizer(folder.parent / f"{folder.name} vocabulary")
    pieces = ["▁", "▁a", "▁red", *(chr(code) for code in range(ord("a"), ord("z") + 1))]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((piece, -2.0) for piece in pieces)]
    torch.manual_seed(3)
    t5 = T5EncoderModel(T5Config(vocab_size=len(vocabulary), d_model=32, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=LATENTS[1],
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=8 + 16,
            pos_embed_max_size=LATENTS[1],
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.5, scaling_factor=1.5),
        text_encoder=clip(CLIPTextModelWithProjection, 8, 1, len(tokenizer)),
        tokenizer=tokenizer,
        text_encoder_2=clip(CLIPTextModelWithProjection, 16, 2, len(tokenizer)),
        tokenizer_2=tokenizer,
        text_encoder_3=t5.eval() if with_t5 else None,
        tokenizer_3=T5Tokenizer(vocab=vocabulary, extra_ids=0) if with_t5 else None,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
