"""Where, when and why a student differs from its teacher: errors by timestep and by place, sharpness of the loss."""

RESULT, MAP = "diagnosis.json", "error_map.safetensors"
TIMESTEPS, IMAGES = 20, 256  # at most: never more images than `evaluate` draws
SHOWN_TIMESTEPS, SHOWN_IMAGES = 8, 4
MAP_IMAGES = 64
SHARPNESS_IMAGES = 64  # each image at another timestep
BACKWARD_IMAGES = 4  # at once: a U-Net of Stable Diffusion's size keeps 1.6 GiB an image for its backward
