"""A teacher's model card: what it is, how it was trained, what it draws and how that scores."""

from __future__ import annotations

from pathlib import Path

import yaml

from edgediff import data, model_folder, samples
from edgediff.backends import best_device
from edgediff.backends.pytorch import PyTorchDenoiser
from edgediff.class_accuracy import Candidate, class_accuracy
from edgediff.data.images import Images
from edgediff.metrics.cost import model_cost
from edgediff.metrics.features import efficientnet_lite0
from edgediff.model_folder import Loaded
from edgediff.output import Output, number
from edgediff.quality import draw, floor_row, model_row, profile, real_images
from edgediff.recipe import TeacherRecipe
from edgediff.reporting import figures
from edgediff.reporting.tables import class_accuracy_table
from edgediff.reporting.templates import template
from edgediff.reporting.usage import usage
from edgediff.results import Quality
from edgediff.run import Role
from edgediff.training import log

GRID_COLUMNS, GRID_IMAGES = 16, 96


def write_card(
    folder: Path, recipe: TeacherRecipe, train_log: Path, global_batch: int, encoded: Path, output: Output
) -> Quality:
    """Score the pipeline in `folder`, and write README.md, samples.png, loss.svg and quality.json into it.

    Args: global_batch: samples of an update, over all processes. encoded: where text embeddings are kept.
    """
    loaded = model_folder.load(folder)
    extractor = efficientnet_lite0()
    reference = samples.scored(recipe.data, "test", loaded, encoded, output)
    training = data.load(recipe.data, "train", shape=reference.shape, output=output)
    real = real_images(reference, training, extractor, recipe.evaluate.num_images, output)
    denoiser = PyTorchDenoiser(loaded.model, loaded.family, best_device())
    drawn = draw(denoiser, loaded, recipe.evaluate, output, "teacher", reference)
    candidates: dict[Role, Candidate] = {"teacher": Candidate(denoiser, loaded, drawn)}
    test = data.load(recipe.data, "test", shape=reference.shape, output=output)
    quality = Quality(
        profile=profile(real, extractor, recipe.evaluate, loaded, recipe.data),
        rows=[floor_row(real), model_row("teacher", drawn, real, extractor)],
        class_accuracy=class_accuracy(candidates, recipe.evaluate, reference, test, training, output),
    )
    lines = log.read(train_log)
    (folder / "samples.png").write_bytes(figures.grid(drawn.pixels[:GRID_IMAGES], GRID_COLUMNS))
    (folder / "loss.svg").write_bytes(figures.loss_curve(lines))
    (folder / "quality.json").write_text(quality.model_dump_json(indent=2) + "\n", encoding="utf-8")
    card = page(folder, recipe, global_batch, loaded, training, quality, log.last_mean(lines)["loss"])
    (folder / "README.md").write_text(card, encoding="utf-8")
    return quality


def page(
    folder: Path,
    recipe: TeacherRecipe,
    global_batch: int,
    loaded: Loaded,
    training: Images,
    quality: Quality,
    final_loss: float,
) -> str:
    """Return the card's text, in Markdown with front matter that hubs read."""
    floor, teacher = quality.rows
    return template("teacher_card.md.j2").render(
        recipe=recipe,
        global_batch=global_batch,
        recipe_yaml=yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False),
        cost=model_cost(loaded.family, loaded.model.config),
        training=training,
        shown=min(GRID_IMAGES, quality.profile.num_images),
        final_loss=final_loss,
        quality=quality,
        floor=floor,
        teacher=teacher,
        ratio=teacher.frechet_distance / floor.frechet_distance,
        number=number,
        class_accuracy=class_accuracy_table(quality),
        usage=usage(folder),
    )
