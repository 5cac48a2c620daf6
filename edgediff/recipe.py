"""Recipes: a whole run as data, typed and closed, with every problem reported at once.

A recipe is YAML. Command-line options and `key=value` overrides change the same data before it is checked, so there
is one set of names, one set of defaults and one place that words what is wrong.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from edgediff.errors import BadInputError, nearest
from edgediff.validation import problems

SUFFIXES = {"k": 1_000, "m": 1_000_000, "g": 1_000_000_000}


def parse_count(value: Any) -> Any:
    """Read `250k`, `1.5M` or `2G` as a number (decimal multiples); what is no text is left to the type's own check.

    Raises: ValueError for text that is no such number.
    """
    if not isinstance(value, str):
        return value
    multiple = SUFFIXES.get(value[-1:].lower())
    try:
        number = float(value[:-1]) * multiple if multiple else float(value)
        if not multiple and not number.is_integer():
            raise ValueError
        return round(number)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"needs a number such as 250000, 250k or 1.5M: {value}") from error


PRINTED = r"^\d+(\.\d+)?[kMG]$"  # a count as papers print it

Count = Annotated[int, BeforeValidator(parse_count)]
TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}  # in milliseconds
SIZES = {"kB": 1e-3, "MB": 1.0, "GB": 1e3, "KiB": 2**10 / 1e6, "MiB": 2**20 / 1e6, "GiB": 2**30 / 1e6}  # in megabytes


def parse_quantity(value: Any, units: Mapping[str, float]) -> Any:
    """Read `30ms` or `0.5 GB` as a number in the unit whose factor is 1; plain numbers are in it already.

    Raises: ValueError for text without one of the units.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    unit = next((unit for unit in sorted(units, key=len, reverse=True) if text.endswith(unit)), "")
    try:
        return float(text.removesuffix(unit)) * units[unit]
    except (KeyError, ValueError) as error:
        raise ValueError(f"needs a number with a unit ({', '.join(units)}): {value}") from error


Milliseconds = Annotated[float, BeforeValidator(partial(parse_quantity, units=TIMES))]
Megabytes = Annotated[float, BeforeValidator(partial(parse_quantity, units=SIZES))]


class Config(BaseModel):
    """Base of every config: closed (an unknown key is an error), frozen, and of finite numbers, as JSON has them."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, values: Any) -> Any:
        """Take a section without keys, which YAML reads as null, for one of defaults."""
        if not isinstance(values, Mapping):
            return values
        kinds = {name: field.annotation for name, field in cls.model_fields.items()}
        sections = {name for name, kind in kinds.items() if isinstance(kind, type) and issubclass(kind, Config)}
        return {key: {} if value is None and key in sections else value for key, value in values.items()}


class DataConfig(Config):
    """Which images: a known set by name (`fashion-mnist`, `fashion-mnist-20k`), or a folder.

    A folder holds image files, WebDataset tars, what Hugging Face `datasets` saved to disk, or Parquet or Arrow files
    with an image column; which, is seen.
    """

    name: str = "fashion-mnist"  # a known set, or the path of a folder
    folder: str | None = None  # where a known set's files are, when not in the system's place
    encoded: str | None = None  # where latents and text embeddings are kept; None: inside the run folder
    conditioning_dropout: float = Field(0.0, ge=0, lt=1)  # share of samples told nothing, for classifier-free guidance
    # Share of samples told what another image shows (random conditioning, Kim et al. 2025): any of the model's classes,
    # or any caption of `random_captions`; without them, of the images.
    random_conditioning: float = Field(0.0, ge=0, le=1)
    random_captions: str | None = None  # a text file, one a line

    @model_validator(mode="after")
    def _captions_of_something(self) -> Self:
        if self.random_captions is not None and not self.random_conditioning:
            raise ValueError("random_captions are for random_conditioning, which is 0")
        return self


FEWEST_SCORED = 4  # images: precision and recall look at the three nearest others of every one
PLACES = ("data.folder", "data.encoded")  # where things lie, while hashes say what they are
SPEED_ONLY = ("evaluate.batch_size",)  # images are the same whatever it is


class TrainingConfig(Config):
    """Steps, optimiser (AdamW), schedules and seed of one training, shared by teachers and students."""

    steps: int = Field(2000, gt=0)
    # Of one forward, which is what memory bounds. An update sees batch_size x gradient_accumulation x processes:
    # on more processes, divide one of the two by their number to train as before, or raise the learning rate.
    batch_size: int = Field(64, gt=0)
    gradient_accumulation: int = Field(1, gt=0)  # forwards of one process for one update
    learning_rate: float = Field(1e-3, gt=0)
    lr_schedule: Literal["constant", "cosine"] = "cosine"  # cosine falls to 0 after the last step
    warmup_steps: int = Field(100, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    grad_clip: float = Field(1.0, gt=0)  # largest norm of the gradient
    ema_decay: float = Field(0.999, ge=0, lt=1)  # reached gradually: a short run must not average in its start
    # fp16 on NVIDIA GPUs only; auto: bf16 where the device has units for it, fp32 where that would be slower.
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    gradient_checkpointing: bool = False  # compute activations twice instead of keeping them: less memory, more time
    compile: bool = False  # the network's forward, with torch.compile: minutes once, then faster steps
    seed: int = Field(0, ge=0)
    checkpoint_every: int = Field(200, gt=0)  # steps
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)  # beside train.jsonl

    def global_batch(self, processes: int = 1) -> int:
        """Return the samples of an update, over all processes."""
        return self.batch_size * self.gradient_accumulation * processes


# Of a training: how it is watched and saved, which decides nothing of what it ends with.
WATCHING = ("checkpoint_every", "trackers")


class TinyFusionConfig(Config):
    """How `tinyfusion` learns which blocks go (Fang et al., CVPR 2025); its authors' settings, on less data."""

    group_size: int = Field(2, gt=1, le=16)  # M of N:M: neighbouring blocks of which N stay; N follows from the target
    recovery: Literal["lora", "full", "frozen"] = "lora"  # the weight update that stands for later training
    rank: int = Field(8, gt=0)  # of lora
    steps: int = Field(1000, gt=0)  # theirs: 10,000 of 128 images, one pass over ImageNet
    batch_size: int = Field(32, gt=0)
    num_images: int = Field(1024, gt=0)  # of the training set, spread over it
    learning_rate: float = Field(1e-4, gt=0)  # of the weight update
    gate_learning_rate: float = Field(0.1, gt=0)  # of the choice: their 1e-3 on logits times 100, all one to Adam
    temperature: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (4.0, 0.1)  # first and last


BlockMeasureName = Literal["first", "last", "evenly", "random", "magnitude", "block_influence", "oracle", "laptop_diff"]


class DepthConfig(Config):
    """How many blocks go, by exactly one of five targets, and which ones."""

    remove: float | None = Field(None, ge=0, lt=1)  # fraction of the removable blocks, rounded to whole ones
    keep: int | None = Field(None, ge=0)  # removable blocks that stay
    params: Count | None = Field(None, gt=0)  # parameters that stay
    macs: Count | None = Field(None, gt=0)  # multiply-accumulates of one forward of one image
    rule: str | None = None  # bk_base, bk_small, bk_tiny, ssd_1b, koala_1b or koala_700m, where it fits
    by: BlockMeasureName | Literal["tinyfusion"] = "laptop_diff"  # which blocks go
    num_images: int = Field(16, gt=0)  # calibration images of block_influence, oracle and laptop_diff
    tinyfusion: TinyFusionConfig = TinyFusionConfig()

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        targets = ("remove", "keep", "params", "macs", "rule")
        given = [name for name in targets if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"needs exactly one of {', '.join(targets)}; given: {', '.join(given) or 'none'}")
        if self.by in ("evenly", "tinyfusion") and given[0] in ("params", "macs"):
            raise ValueError(f"{self.by} chooses a number of blocks: give remove or keep, not {given[0]}")
        return self


BUDGETS = ("latency_ms", "memory_mb", "params", "macs")
WIDTH_TARGETS = ("ratio", "widths", *BUDGETS)  # of `PruneConfig`


class PruneConfig(Config):
    """How much goes, and what: blocks first, where depth is asked for, then channels, by their importance.

    Channels go by a ratio, to given widths, or within budgets, which may be several; none is needed where depth is.
    """

    ratio: float | None = Field(None, ge=0, lt=1)  # fraction of channels removed
    params: Count | None = Field(None, gt=0)  # parameters that stay
    macs: Count | None = Field(None, gt=0)  # multiply-accumulates of one forward of one image
    widths: tuple[Annotated[int, Field(gt=0)], ...] | None = None  # channels of every level, in the model's order
    latency_ms: Milliseconds | None = Field(None, gt=0)  # of a step (one forward of one image) on the device
    memory_mb: Megabytes | None = Field(None, gt=0)  # 10^6 bytes, of a process that runs only the student, at its peak
    device: str | None = None  # the device's profile (`edgediff profile`); None: this machine is measured
    # Among which students the one within the budgets is looked for: the widest that one ratio for all levels gives, or
    # the one that keeps most of the importance, of all widths, or of all widths and blocks.
    search: Literal["uniform", "widths", "widths_and_blocks"] = "widths_and_blocks"
    importance: Literal["magnitude", "random", "taylor", "diff_pruning"] = "magnitude"  # which channels stay
    num_images: int = Field(16, gt=0)  # calibration images of taylor and diff_pruning
    depth: DepthConfig | None = None
    # Singular value scaling of what stays, before it is trained; svs_norm keeps the size of every layer's weights.
    refine: Literal["none", "svs", "svs_norm"] = "none"
    seed: int = Field(0, ge=0)  # of random choices, and of the calibration's noise

    @property
    def narrows(self) -> bool:
        """Whether channels go, not blocks alone."""
        return self.ratio is not None or self.widths is not None or bool(self.budgets)

    @property
    def budgets(self) -> dict[str, float]:
        """The budgets that are given, those that a profile tells first."""
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    @property
    def needs_profile(self) -> bool:
        """Whether a budget is one that only a profile of the device tells."""
        return self.latency_ms is not None or self.memory_mb is not None

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        given = [name for name in WIDTH_TARGETS if getattr(self, name) is not None]
        kinds = {"budget" if name in BUDGETS else name for name in given}
        if len(kinds) > 1 or not (given or self.depth):
            needed = f"exactly one of ratio, widths and budgets ({', '.join(BUDGETS)})" + (
                "" if given else ", or depth"
            )
            raise ValueError(f"needs {needed}; given: {', '.join(given) or 'none'}")
        if self.device is not None and not self.needs_profile:
            raise ValueError("a device's profile is only asked for latency_ms and memory_mb: give one of them")
        return self


PREDICTION_LOSSES = ("output", "lift", "place", "multi_scale", "dist")
FEATURE_LOSSES = ("feature", "attention", "masked_feature")
KD_LOSSES = (*PREDICTION_LOSSES, *FEATURE_LOSSES)
TWO_PART_LOSSES = ("place", "lift")  # of a coarse and a fine part, with a weight of the fine one
KD_PRESETS: dict[str, dict[str, float]] = {
    "none": {},
    "output+feature": {"output": 1.0, "feature": 1.0},
    "angular": {"output": 1.0},
    "bk_sdm": {"output": 1.0, "feature": 1.0},  # Kim et al. 2023; their task loss is the diffusion loss
}
KD_SETTINGS: dict[str, dict[str, str]] = {  # what a preset sets beside its losses, where that is left at its default
    "angular": {"student_prediction": "v_prediction", "timestep_weighting": "angular"},
}


def parse_losses(value: Any) -> Any:
    """Read distillation losses as name → weight: `place`, `output,feature=0.01`, a list of such, a preset, a mapping.

    Raises: ValueError for an unknown name, with the nearest one, for a name given twice, for `none` beside others, and
    for a weight that is no positive number.
    """
    if isinstance(value, str):
        value = value.split(",")
    if isinstance(value, list | tuple):
        losses: dict[str, Any] = {}
        parts = [str(part).strip() for part in value]
        if len(parts) > 1 and not all(parts):
            raise ValueError(f"a loss has no name: `{','.join(parts)}`; commas stand between names, without spaces")
        if "none" in parts and len(parts) > 1:
            raise ValueError(f"none is no loss beside others, leave it or them out: {','.join(parts)}")
        for part in parts:
            name, given, weight = part.partition("=")
            found = KD_PRESETS[name] if name in KD_PRESETS and not given else {name: weight if given else 1.0}
            for twice in losses.keys() & found.keys():
                raise ValueError(f"{twice} is given twice")
            losses |= found
        value = losses
    return {name: _weight(name, given) for name, given in value.items()} if isinstance(value, dict) else value


def _weight(name: str, given: Any) -> float:
    if name in KD_PRESETS:
        raise ValueError(f"{name} is a preset and takes no weight; its losses do: {loss_words(KD_PRESETS[name])}")
    if name not in KD_LOSSES:
        raise ValueError(f"unknown loss {name}; {nearest(name, (*KD_LOSSES, *KD_PRESETS))}")
    try:  # YAML takes 1e-6 for a word
        weight = math.nan if isinstance(given, bool) else float(given)
    except (TypeError, ValueError):
        weight = math.nan
    if not 0 < weight < math.inf:
        raise ValueError(f"the weight of {name} must be a number above 0: {given}")
    return weight


def loss_words(losses: Mapping[str, float]) -> str:
    """Word losses as `--kd` reads them: `place`, `output,feature=0.01`, `none`."""
    words = [name if weight == 1 else f"{name}={weight:g}" for name, weight in losses.items()]
    return ",".join(words) or "none"


Losses = Annotated[dict[str, float], BeforeValidator(parse_losses)]
PredictionType = Literal["epsilon", "v_prediction", "sample"]


class PlaceConfig(Config):
    """PLACE and its ablations; LIFT takes all but the groups."""

    group_size: int = Field(16, gt=2)  # elements of one group; through two every line goes
    grouping: Literal["error", "raster", "random"] = "error"  # by similar error, by patches of the map, by chance
    terms: Literal["both", "coarse", "fine"] = "both"  # coarse: slope and intercept; fine: what is left of them
    norm: Literal["l1", "l2"] = "l1"  # of the coarse term
    # Of the fine term; adaptive: 1 - mean coarse error; fixed: 1; linear and cosine rise from 0 to 1 over the training;
    # learnable: trained with the student.
    fine_weight: Literal["adaptive", "fixed", "linear", "cosine", "learnable"] = "adaptive"

    @model_validator(mode="after")
    def _weight_of_something(self) -> Self:
        if self.terms == "coarse" and self.fine_weight == "learnable":
            raise ValueError("a learnable fine_weight needs the fine term: terms must be both or fine")
        return self


class CacheConfig(Config):
    """Teacher targets that are kept on disk instead of computed again (`--cache-targets`)."""

    targets: Count = Field(0, ge=0)  # how many; 0: none are kept
    folder: str | None = None  # shared between runs; by default inside the run folder
    seed: int = Field(0, ge=0)  # of their noise and timesteps, so that trainings of several seeds share them


class AssistantConfig(Config):
    """A student between teacher and student (teacher assistant; Mirzadeh et al. 2020), distilled as the student is.

    It keeps all blocks of the teacher: were those of a shallow student missing from the first assistant on, the largest
    step of the chain would be its first.
    """

    ratio: float = Field(ge=0, lt=1)  # fraction of the teacher's channels removed
    steps: int | None = Field(None, gt=0)  # None: as many as the student


def _left_open(kd: Mapping[str, float], place: PlaceConfig) -> str | None:
    """Say what these losses leave undetermined where the data have no part, if anything."""
    if set(kd) <= set(FEATURE_LOSSES):
        return f"nothing trains the student's last layers: kd {loss_words(kd)} looks at feature maps only"
    if set(kd) <= {*FEATURE_LOSSES, "dist"}:
        return f"nothing says how large predictions are: kd {loss_words(kd)} compares correlations only"
    if place.terms == "fine" and set(kd) <= {*FEATURE_LOSSES, "dist", *TWO_PART_LOSSES}:
        return f"nothing says how large predictions are: the fine term alone of kd {loss_words(kd)} is blind to it"
    return None


class DistillConfig(Config):
    """What the student learns from (LIFT/PLACE; Han et al. 2026) and how it is trained."""

    kd: Losses = {"place": 1.0}  # what of student and teacher is compared; a list, or a mapping of names to weights
    diffusion_weight: float = Field(1.0, ge=0)  # of the loss against the data, beside the teacher's
    place: PlaceConfig = PlaceConfig()
    reduction: Literal["sum", "mean"] = "mean"  # over the elements of an image
    teachers: tuple[str, ...] = ()  # who teaches, when not the recipe's teacher alone: names or folders
    assistants: tuple[AssistantConfig, ...] = ()  # from large to small, each the teacher of the next
    guidance: Literal["last", "dense"] = "last"  # dense: by everyone before, in turns (Son et al. 2021)
    initial: Literal["pruned", "fresh"] = "pruned"  # the student's first weights: cut from the teacher, or random
    student_prediction: PredictionType | None = None  # None: the teacher's own
    kd_space: PredictionType | None = None  # where predictions are compared; None: the student's own
    # Of the teacher's x0, where it is converted through x0: held to the range of images, or to a percentile of its own.
    x0_threshold: Literal["none", "clip", "dynamic"] = "clip"
    # How much a timestep counts: alike where predictions are compared, by min(SNR, 5) or max(SNR, 1) of the x0 error,
    # as if drawn evenly in the angle from data to noise, or divided by what its loss was so far.
    timestep_weighting: Literal["uniform", "min_snr", "snr_truncated", "angular", "normalised"] = "uniform"
    gradient_norms_every: int = Field(100, ge=0)  # steps between two logs of every term's gradient norm; 0, fp16: never
    cache: CacheConfig = CacheConfig()
    training: TrainingConfig = TrainingConfig()

    @property
    def remembered_targets(self) -> int:
        """How many of the teacher's answers are kept; 0: none, or nobody is asked."""
        return self.cache.targets if self.kd else 0

    @model_validator(mode="before")
    @classmethod
    def _preset_settings(cls, values: Any) -> Any:
        kd = values.get("kd") if isinstance(values, dict) else None
        names = kd.split(",") if isinstance(kd, str) else kd if isinstance(kd, list | tuple) else ()
        for preset in names:
            for name, value in KD_SETTINGS.get(str(preset).strip(), {}).items():
                if values.get(name) in (None, cls.model_fields[name].default):
                    values = {**values, name: value}
        return values

    @model_validator(mode="after")
    def _teachers_that_differ(self) -> Self:
        twice = [name for place, name in enumerate(self.teachers) if name in self.teachers[:place]]
        if twice:
            raise ValueError(f"teachers: {twice[0]} is given twice, name each of them once")
        ratios = [assistant.ratio for assistant in self.assistants]
        if any(before >= after for before, after in itertools.pairwise(ratios)):
            raise ValueError(f"assistants fall in size, so their ratios must rise: {', '.join(map(str, ratios))}")
        for name, some in (("assistants", ratios), ("teachers", self.teachers)):
            if some and not self.kd:
                raise ValueError(f"{name} teach the student, and kd is none: leave them out, or choose a kd")
        if self.guidance == "dense" and not ratios:
            raise ValueError("guidance: dense is by assistants too, and there are none: add some, or leave it out")
        return self

    @model_validator(mode="after")
    def _something_to_learn(self) -> Self:
        if not self.kd and not self.diffusion_weight:
            raise ValueError("nothing to learn from: kd is none and diffusion_weight is 0")
        if not self.diffusion_weight and (open_end := _left_open(self.kd, self.place)):
            raise ValueError(f"{open_end}, and diffusion_weight is 0; add output")
        learnable = self.place.fine_weight == "learnable" and set(TWO_PART_LOSSES) & set(self.kd)
        if self.timestep_weighting == "normalised" and learnable:
            raise ValueError(
                "a learnable place.fine_weight makes the loss negative, which `timestep_weighting: normalised` cannot "
                "divide by: choose another of either"
            )
        return self


# Of a distillation, likewise.
DISTILL_WATCHING = ("gradient_norms_every", *(f"training.{name}" for name in WATCHING))


def objective_words(config: DistillConfig) -> str:
    """Word what a student learns, and by whom: `kd place`, or `kd output, v_prediction, 2 teacher assistants`."""
    words = [f"kd {loss_words(config.kd)}"]
    if config.student_prediction is not None:
        words.append(config.student_prediction)
    if config.timestep_weighting != "uniform":
        words.append(f"{config.timestep_weighting} timesteps")
    if len(config.teachers) > 1:
        words.append(f"{len(config.teachers)} teachers")
    if config.assistants:
        words.append(f"{len(config.assistants)} teacher assistant{'s' if len(config.assistants) > 1 else ''}")
    return ", ".join(words)


class ExportConfig(Config):
    """The ONNX graph: its operator set, and how far it may be from PyTorch."""

    opset: int = Field(20, ge=18, le=23)  # from 20 on, GroupNorm stays one readable operator
    batch_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field((1, 3, 16), min_length=1)  # of the parity check
    tolerance: float = Field(1e-3, gt=0)  # largest absolute difference


class BuildConfig(Config):
    """The engines built from the student's graph and the batch sizes they accept."""

    backends: tuple[Literal["tensorrt_rtx", "tensorrt"], ...] = ()  # none: no engine is built
    min_batch: int = Field(1, gt=0)
    opt_batch: int = Field(1, gt=0)  # what the engine is made fastest for
    max_batch: int = Field(16, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.min_batch <= self.opt_batch <= self.max_batch:
            raise ValueError(
                f"needs min_batch <= opt_batch <= max_batch; given: {self.min_batch}, {self.opt_batch}, "
                f"{self.max_batch}"
            )
        return self


class BenchmarkConfig(Config):
    """How latency is measured: rounds that visit every candidate once, so that a noisy machine hits all alike."""

    batch_sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field((1, 16), min_length=1)  # images of one forward
    threads: int = Field(1, gt=0)  # of the CPU backends
    warmup_iterations: int = Field(3, ge=0)  # rounds before them
    iterations: int = Field(20, gt=1)  # rounds that count


class DrawConfig(Config):
    """How images are drawn from a model."""

    num_images: int = Field(2000, gt=1)
    num_inference_steps: int = Field(50, gt=0)  # of the sampler
    clip_sample: bool = True  # clip the x0 estimate to [-1, 1] at every step
    guidance_scale: float = Field(1.0, ge=0)  # of conditional models, classifier-free; 1: none
    first_seed: int = Field(0, ge=0)  # image i is drawn from seed first_seed + i
    batch_size: int = Field(64, gt=0)  # changes speed only


class EvaluateConfig(DrawConfig):
    """How images are drawn for the quality figures; part of the profile every figure carries."""

    num_images: int = Field(2000, ge=FEWEST_SCORED)
    # Of class accuracy, for conditional models whose data has classes: what guidance buys; []: not measured.
    guidance_scales: tuple[Annotated[float, Field(ge=0)], ...] = (1.0, 2.0, 4.0)
    num_class_images: int = Field(200, gt=0)  # at each of these scales, of every model; at most num_images


class GenerateConfig(DrawConfig):
    """What a teacher draws to be learned from, and what a conditional one is asked for: at most one of the three.

    A class-conditional teacher is asked for all its classes in turn where nothing is said.
    """

    classes: tuple[Annotated[int, Field(ge=0)], ...] = ()  # in turn
    captions: str | None = None  # a text file, one a line, in turn
    data: DataConfig | None = None  # whose classes or captions, in the order of its training images

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("classes", "captions", "data") if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"needs at most one of classes, captions and data; given: {', '.join(given)}")
        return self


class PublishedConfig(Config):
    """The size that a paper prints of a recipe's student, digit for digit: `583.5M`, `59.4G`."""

    source: str  # paper and table
    params: str | None = Field(None, pattern=PRINTED)  # its parameters
    layout: Literal["diffusers", "original"] = "diffusers"  # whose parameters were counted
    macs: str | None = Field(None, pattern=PRINTED)  # its multiply-accumulates
    # What they counted.
    macs_of: tuple[Literal["weights", "attention", "layer_norm", "group_norm"], ...] = ("weights", "attention")
    differs: str = ""  # why a stock student cannot have the printed size, where it has not


class Recipe(Config):
    """One compression from teacher to report, in the order of its stages."""

    teacher: str  # a name that `edgediff teachers` lists, a diffusers pipeline's folder, or a hub id
    data: DataConfig = DataConfig()
    prune: PruneConfig
    distill: DistillConfig = DistillConfig()
    export: ExportConfig = ExportConfig()
    build: BuildConfig = BuildConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    evidence: Literal["published", "measured", "extrapolated", ""] = ""  # where `expected` comes from
    expected: dict[str, float | str] = {}  # figures to hold the run against, shown in its report
    published: PublishedConfig | None = None

    @model_validator(mode="after")
    def _somebody_knows_what_belongs_to_a_condition(self) -> Self:
        if self.data.random_conditioning and not self.distill.kd:
            raise ValueError("data.random_conditioning needs a teacher to say what belongs to a condition: kd is none")
        if self.data.random_conditioning == 1 and (open_end := _left_open(self.distill.kd, self.distill.place)):
            raise ValueError(
                f"{open_end}, and data.random_conditioning is 1, which leaves no sample to the data term; add output"
            )
        return self


class ModelConfig(Config):
    """A stock diffusers model: its class and the config that its constructor takes."""

    class_name: str
    config: dict[str, Any]


class TeacherRecipe(Config):
    """How a small teacher is trained from nothing, and how its card scores it."""

    name: str
    about: str = ""  # one sentence for the card
    license: str = "apache-2.0"  # of the weights, as Hugging Face spells it
    model: ModelConfig
    scheduler: dict[str, Any]  # its config; `_class_name` where it is not a DDPMScheduler
    pipeline: str = "DDPMPipeline"  # the stock class that loads the whole folder
    parts: str | None = None  # folder whose `vae`, text encoder and tokenizer the pipeline takes
    text_encoder: dict[str, Any] | None = None  # config of a CLIPTextModel that is trained with the model; SD only
    data: DataConfig = DataConfig()
    training: TrainingConfig
    snapshots: tuple[Annotated[int, Field(gt=0)], ...] = ()  # steps whose averaged weights are kept, as teachers too
    evaluate: EvaluateConfig = EvaluateConfig()

    @model_validator(mode="after")
    def _told_the_truth(self) -> Self:
        if self.data.random_conditioning:
            raise ValueError("data.random_conditioning is for students, whose teacher knows what a condition asks for")
        return self

    @model_validator(mode="after")
    def _snapshots_within_the_training(self) -> Self:
        beyond = [step for step in self.snapshots if step > self.training.steps]
        if beyond:
            raise ValueError(f"a snapshot of step {beyond[0]} is beyond the {self.training.steps} steps of training")
        return self


class AutoencoderRecipe(Config):
    """How the autoencoder of small latent teachers is trained from nothing."""

    name: str
    config: dict[str, Any]  # of a stock AutoencoderKL
    kl_weight: float = Field(1e-4, ge=0)  # of the latents' distance from N(0, 1)
    data: DataConfig = DataConfig()
    training: TrainingConfig

    @model_validator(mode="after")
    def _not_compiled(self) -> Self:
        if self.training.compile:
            raise ValueError("training.compile: autoencoders are trained as they are; leave it out")
        return self


AnyRecipe = TypeVar("AnyRecipe", bound=Config)


def read_stored(path: Path) -> dict[str, Any]:
    """Return the recipe of an existing run as plain data, for stage commands to override and check.

    Args: path: of the recipe in the run's folder.
    Raises: BadInputError when there is no run.
    """
    if not path.exists():
        raise BadInputError(f"not a run folder: `{path.parent}`", "`edgediff prune` or `edgediff compress` starts one")
    return read_yaml(path)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a recipe file without checking its keys.

    Raises: BadInputError when it is missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise BadInputError(
            f"recipe not found: `{path}`", "`edgediff recipes` lists the ones that come along"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise BadInputError(f"recipe cannot be read: `{path}`", " ".join(str(error).split())) from error
    if not isinstance(value, dict):
        raise BadInputError(f"recipe is not a mapping of keys to values: `{path}`")
    return value


def packaged() -> dict[str, tuple[Path, str]]:
    """Return the recipes that come along: name → its file and what it says of itself in its first lines."""
    found = {}
    for path in sorted(recipes_folder().glob("*.yaml")):
        comments = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        words = [line.removeprefix("#").strip() for line in comments]
        about = next((line for line in words if line and not line.startswith("edgediff ")), "")
        found[path.stem] = (path, about)
    return found


def recipes_folder() -> Path:
    """Return where the recipes are: inside an installed package, beside it in a source tree."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def find(name: str) -> Path:
    """Return the file of a recipe that comes along, or of the path `name`.

    Raises: BadInputError for a bare name that is neither, with the nearest one.
    """
    known = packaged()
    if name in known:
        return known[name][0]
    path = Path(name)
    if path.suffix or path.exists():
        return path
    raise BadInputError(f"unknown recipe: {name}", f"{nearest(name, known)}; or give the path of a file")


def apply_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `values` with `dotted.key=value` overrides put in; values are read as YAML.

    Raises: BadInputError for an override without `=` or one that goes through something that is not a mapping.
    """
    result = _copy(values)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise BadInputError(f"not an override: `{override}`", "write `key=value`, such as `distill.kd=lift`")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise BadInputError(f"value cannot be read: `{override}`", "write it as in a recipe") from error
        *parents, last = key.split(".")
        target = result
        for place, parent in enumerate(parents, start=1):
            if target.get(parent) is None:  # not there, or a section of which every key is a comment
                target[parent] = {}
            target = target[parent]
            if not isinstance(target, dict):
                raise BadInputError(f"{'.'.join(parents[:place])}: not a section of keys: {target}")
        target[last] = value
    return result


def check(values: Mapping[str, Any], model: type[AnyRecipe], source: str = "recipe") -> AnyRecipe:
    """Turn plain data into a checked recipe.

    Raises: BadInputError that lists every problem, one a line, unknown keys with the nearest known one.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        found = problems(error, model)
        if len(found) == 1:
            raise BadInputError(f"{source}: {found[0]}") from error
        lines = "\n".join(f"  {problem}" for problem in found)
        raise BadInputError(f"{source} has {len(found)} problems:\n{lines}") from error


def read(path: Path, overrides: Iterable[str], model: type[AnyRecipe]) -> AnyRecipe:
    """Read and check a recipe file of any kind, changed by overrides.

    Raises: what `read_yaml`, `apply_overrides` and `check` raise.
    """
    return check(apply_overrides(read_yaml(path), overrides), model, f"`{path}`")


def dump(recipe: Config) -> str:
    """Return a recipe as YAML with every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def differences(before: Any, after: Any, prefix: str = "") -> dict[str, str]:
    """Return in words, by dotted key, sorted, where plain data differ: `distill.kd.place 1.0 → not given`."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        dot = f"{prefix}." if prefix else ""
        found: dict[str, str] = {}
        for key in sorted({*before, *after}):
            found |= differences(before.get(key), after.get(key), f"{dot}{key}")
        return found
    if before == after:
        return {}
    old, new = ("not given" if value is None else value for value in (before, after))
    return {prefix: f"{prefix} {old} → {new}"}


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value
