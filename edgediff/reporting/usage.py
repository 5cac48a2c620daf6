"""How people use a pipeline folder with diffusers alone, for the examples of model cards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgediff import families, model_folder
from edgediff.artifacts import read_object


@dataclass(frozen=True)
class Usage:
    """The pipeline's class, what its loading takes beside the folder, a call that draws, the task as hubs name it."""

    pipeline: str
    loading: str
    drawing: str
    task: str
    conditional: bool

    def code(self, folder: str) -> str:
        """Return lines of Python that draw with the pipeline in a folder of this name."""
        loaded = f'{self.pipeline}.from_pretrained("{folder}"{self.loading})'
        return f"from diffusers import {self.pipeline}\n\npipeline = {loaded}\nimages = pipeline({self.drawing}).images"


def usage(folder: Path) -> Usage:
    """Return how the pipeline in a folder is used; loads no weights."""
    index = read_object(folder / model_folder.INDEX)
    config = read_object(model_folder.component(folder) / "config.json")
    family = families.of(config["_class_name"])
    told = family.conditioning_names(family.build(config, "meta").config)  # with what a config.json may leave out
    # A stock pipeline that was saved without a part must be told so again, where its class does not say that it may be.
    left_out = [name for name in family.optional_parts if index.get(name) == [None, None]]
    loading = "".join(f", {name}=None" for name in left_out)
    drawing, task = "batch_size=4", "unconditional-image-generation"
    if "class_labels" in told:
        # The stock guidance takes label 1000 for "no class", which only ImageNet's models have.
        drawing = "class_labels=[0, 1, 2, 3], guidance_scale=1.0"
    elif told:
        drawing, task = '"a photo of a sneaker", guidance_scale=2.0', "text-to-image"
    return Usage(index["_class_name"], loading, drawing, task, bool(told))
