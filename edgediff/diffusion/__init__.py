"""The diffusion process around a model: noising for training, sampling over any Denoiser."""
