"""A stock pipeline's folder before its denoising model is trained: an index, and the parts that were trained before."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers

from edgediff import families, model_folder
from edgediff.artifacts import atomic_folder, read_object, write_json
from edgediff.encoding import projected
from edgediff.errors import BadInputError
from edgediff.recipe import TeacherRecipe

LEARNED = {"text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"]}


def lay_out(folder: Path, recipe: TeacherRecipe, model: Any, scheduler: Any) -> None:
    """Write what the recipe's pipeline holds beside its model, of which only the config is there yet.

    Parts come from the folder `recipe.parts`; a second text encoder or tokenizer that it lacks is the first one again.

    Raises: BadInputError for an unknown pipeline class, or parts that it needs and the recipe's folder lacks.
    """
    kind = getattr(diffusers, recipe.pipeline, None)
    if kind is None:
        raise BadInputError(f"pipeline: diffusers has no {recipe.pipeline}", "use DDPMPipeline or DiTPipeline")
    family = families.of(model)
    own: dict[str, list[str]] = {
        family.component: ["diffusers", type(model).__name__],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    own |= LEARNED if recipe.text_encoder is not None else {}
    index: dict[str, Any] = {"_class_name": recipe.pipeline, "_diffusers_version": diffusers.__version__, **own}
    with atomic_folder(folder) as temporary:
        for part, parameter in list(inspect.signature(kind.__init__).parameters.items())[1:]:
            if part in own:
                continue
            source = _source(recipe.parts, part)
            if source is not None:
                _copy(source, temporary / part, parameter.annotation)
                index[part] = _class_of(temporary / part)
            elif part in kind._optional_components or part in family.optional_parts:
                index[part] = [None, None]
            elif part == "requires_safety_checker":
                index[part] = False  # without one, the stock pipeline would complain at every loading
            elif parameter.default is inspect.Parameter.empty:
                raise BadInputError(
                    f"parts: {recipe.pipeline} needs `{part}`, which is not there: `{Path(recipe.parts or '') / part}`",
                    "`edgediff teacher train-autoencoder` makes a `vae`; a teacher with `text_encoder` has a text "
                    "encoder and a tokenizer",
                )
        _check_autoencoder(temporary / "vae", family.autoencoder_keys, recipe.pipeline)
        model.save_config(temporary / family.component)
        write_json(temporary / model_folder.INDEX, index)


def _source(parts: str | None, part: str) -> Path | None:
    """Return the folder that a part is taken from, where there is one."""
    names = (part, part.removesuffix("_2"))
    return next((Path(parts) / name for name in names if (Path(parts) / name).is_dir()), None) if parts else None


def _copy(source: Path, target: Path, wanted: Any) -> None:
    """Copy a part; a text encoder whose text the pipeline wants projected gets a projection that changes nothing."""
    name = getattr(wanted, "__name__", "")
    if name == projected.CLASS_NAME and _class_of(source)[1] != name:
        projected.with_projection(source, target)
    else:
        shutil.copytree(source, target)


def _check_autoencoder(folder: Path, keys: Sequence[str], pipeline: str) -> None:
    for key in keys:
        if read_object(folder / "config.json").get(key) is None:
            raise BadInputError(
                f"parts: the `vae` has no `{key}`, without which {pipeline} cannot draw",
                f"write `{key}: 0.0` into the autoencoder's config",
            )


def _class_of(part: Path) -> list[str]:
    """Return library and class of a pipeline's part, as its index names them."""
    config = read_object(part / "config.json") if (part / "config.json").is_file() else {}
    if "_class_name" in config:
        return ["diffusers", config["_class_name"]]
    if "architectures" in config:
        return ["transformers", config["architectures"][0]]
    return ["transformers", read_object(part / "tokenizer_config.json")["tokenizer_class"]]
