"""edgediff: diffusion models small enough for the edge, with the proof."""

__version__ = "0.1.0"
