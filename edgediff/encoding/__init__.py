"""What the other parts of a pipeline make of images and captions, made once and kept: latents, text embeddings."""
