"""The schema of every result that is written for machines: names, units, directions.

Each result file also holds `stage`, `config`, `inputs` and `made` (see `artifacts.write_result`), so that a figure
can always be traced to what it was measured on.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from edgediff.run import Role

SCHEMA_VERSION = 1

DIRECTIONS: dict[str, Literal["lower", "higher"]] = {
    "params": "lower",
    "macs": "lower",
    "bytes": "lower",
    "step_p50_ms": "lower",
    "step_p90_ms": "lower",
    "step_p99_ms": "lower",
    "image_ms": "lower",
    "images_per_second": "higher",
    "peak_memory_mib": "lower",
    "speedup": "higher",
    "frechet_distance": "lower",
    "kid_mean": "lower",
    "precision": "higher",
    "recall": "higher",
    "psnr_to_teacher": "higher",
    "ssim_to_teacher": "higher",
    "diverged_share": "lower",
    "noise_share": "lower",
    "class_accuracy": "higher",
}
"""Which way is better, for every metric that a report shows or a check gates."""


class Result(BaseModel):
    """Base of every result; unknown keys are refused so that a typo cannot hide a figure."""

    model_config = ConfigDict(extra="forbid")


class Cost(Result):
    """What a model costs whatever it runs on: parameters, MACs of one forward of one image, bytes of weights (fp32)."""

    params: int
    macs: int
    bytes: int


class SearchPoint(Result):
    """A student that a search passed."""

    widths: dict[str, int]  # level → channels
    blocks_removed: int
    costs: dict[str, float]  # predicted: latency_ms, memory_mb, params, macs; the first two with a profile only
    importance_kept: float  # share of the teacher's, see budgets.kept


class Search(Result):
    """What the search for a student within budgets found."""

    students: str  # among which: uniform, widths, widths_and_blocks
    budgets: dict[str, float]
    device: str  # whose profile predicted; empty: none was needed
    threads: int | None  # of the profile
    teacher: dict[str, float]  # its costs, predicted likewise
    found: SearchPoint
    passed: list[SearchPoint]  # Pareto points in the first budget and the importance, cheapest last


class Reached(Result):
    """What pruning was asked for and what it did: to channels, and to blocks where `blocks_before` is given."""

    requested: dict[str, float | str]  # ratio, widths or budgets; what was asked of depth as depth.remove, ...
    importance: str  # of channels; empty when all of them stayed
    widths_before: dict[str, int]  # level → channels
    widths_after: dict[str, int]
    blocks_before: int | None = None  # that could be removed
    blocks_after: int | None = None
    blocks_removed: list[str] = []  # in the order in which they ran
    blocks_by: str = ""  # what chose them: a measure, tinyfusion, or a published rule
    refine: str = "none"  # what was done to the weights that stayed
    params_after: int
    bytes_after: int  # of the weights, fp32
    channels_removed: float  # fraction, over all levels
    params_removed: float  # fraction
    macs_removed: float  # fraction
    search: Search | None = None  # null: no budget was given

    @property
    def asked(self) -> str:
        """What was asked for, in words: `depth.remove 0.5, ratio 0.25`."""
        return ", ".join(
            f"{name} {value if isinstance(value, str) else format(value, ',g')}"
            for name, value in self.requested.items()
        )

    @property
    def kind(self) -> str:
        """What was done, in a word: width-pruned, depth-pruned, depth- and width-pruned."""
        if self.blocks_before is None:
            return "width-pruned"
        return "depth- and width-pruned" if self.importance else "depth-pruned"


class ParityCase(Result):
    """One comparison of the exported graph with PyTorch."""

    batch_size: int
    timestep: int
    max_abs: float
    relative: float  # L2 of the difference over L2 of PyTorch's prediction
    cosine: float


class Parity(Result):
    """The exported graph against PyTorch, over batch sizes and timesteps."""

    tolerance: float  # on max_abs
    opset: int
    cases: list[ParityCase]

    @property
    def max_abs(self) -> float:
        """The largest absolute difference of all cases."""
        return max(case.max_abs for case in self.cases)


class Build(Result):
    """One engine and how it was built."""

    backend: str
    version: str  # of the builder's library
    seconds: float
    bytes: int
    onnx_sha256: str
    batch: tuple[int, int, int]  # optimization profile: min, opt, max
    compute_capabilities: list[str]  # such as "SM86"; empty: the one of the building GPU


class LatencyProfile(Result):
    """What latency figures depend on; two tables compare only when these agree."""

    device: str
    threads: int
    warmup_iterations: int
    iterations: int
    num_inference_steps: int  # of one image, for image_ms
    forwards: int = 1  # of one of these steps: classifier-free guidance takes two
    sample_shape: tuple[int, int, int]  # C, H, W
    gpu: str | None = None  # of the cuda rows; null: there is none


class LatencyRow(Result):
    """One model on one backend at one batch size; step = one forward of the batch."""

    role: Role
    backend: str
    device: str  # cpu, cuda
    precision: str  # fp32, fp16
    batch_size: int
    status: Literal["measured", "not run"]
    reason: str = ""  # why it was not run
    step_p50_ms: float | None = None
    step_p90_ms: float | None = None
    step_p99_ms: float | None = None
    image_ms: float | None = None  # num_inference_steps times so many forwards, for one image of the batch
    images_per_second: float | None = None
    peak_memory_mib: float | None = None  # of a process that runs only this model
    speedup: float | None = None  # median over rounds of teacher time / this time, same backend and batch size


class BudgetCheck(Result):
    """A step of teacher and student, measured in turns as a profile measures: what a predicted latency is held to."""

    device: str
    threads: int
    clock: str  # processor time of one thread, or wall time of several
    teacher_ms: float  # lower quartile
    student_ms: float


class Latency(Result):
    """latency.json."""

    profile: LatencyProfile
    costs: dict[Role, Cost]
    rows: list[LatencyRow]
    budget: BudgetCheck | None = None  # null: no latency or memory budget was given


class Reference(Result):
    """The images that drawn ones are compared with."""

    name: str
    sha256: str
    num_images: int


class QualityProfile(Result):
    """What quality figures depend on; two tables compare only when these agree."""

    extractor: str
    extractor_sha256: str
    resize: str
    reference: Reference
    reference_kind: str = "real images"  # or images drawn by the teacher, or by another model (`samples.kind`)
    floor_kind: str = "real images"  # likewise; the floor is of training images
    num_images: int
    sampler: str  # ddim, eta 0
    num_inference_steps: int
    clip_sample: bool
    guidance_scale: float = 1.0  # of conditional models; 1: none
    first_seed: int
    kid_subset_size: int
    kid_subsets: int
    neighbours: int  # k of precision and recall
    noise_limit: float | None = None  # level beyond which an image is noise; null: the reference is noise itself


class QualityRow(Result):
    """One model's images against the reference, and against the teacher's images of the same seeds.

    `floor` is as many training images as the models drew: what a perfect model would get at this count.
    Undefined figures are null: the floor and the teacher have no similarity to the teacher.
    """

    role: Literal["floor", "teacher", "pruned", "student"]
    backend: str  # what drew the images; empty for the floor
    frechet_distance: float
    kid_mean: float
    kid_std: float
    precision: float
    recall: float
    psnr_to_teacher: float | None = None  # dB, mean over images
    ssim_to_teacher: float | None = None
    diverged_share: float | None = None  # of pixels with abs(x) > 1.5 before clamping
    noise_share: float | None = None  # of images that are noise (`metrics.divergence`) or not finite


class ClassAccuracyRow(Result):
    """One model at one guidance scale."""

    role: Role
    guidance_scale: float
    class_accuracy: float  # share of its images that the classifier takes for the class that was asked for


class ClassAccuracy(Result):
    """Whether conditional models draw what they are asked for, by a classifier that was trained on the data."""

    classifier_sha256: str
    num_images: int  # of every model at every guidance scale
    real: float  # the classifier's share on images of the reference, which it has not seen: a perfect model's
    num_real: int
    rows: list[ClassAccuracyRow]


class Quality(Result):
    """quality.json."""

    profile: QualityProfile
    rows: list[QualityRow]
    class_accuracy: ClassAccuracy | None = None  # null: nothing was asked for, or the data has no classes


class TimestepError(Result):
    """One model against its teacher at one timestep, on held-out images: means over images, channels and elements."""

    timestep: int
    mse: float  # of the predictions, in the teacher's prediction type
    x0_rmse: float  # of the x0 that they mean, on a range of 2: what a sampler makes of the error
    slope: float  # of LIFT's fit of the teacher's prediction on the model's, one for every image and channel
    slope_std: float
    intercept: float
    intercept_std: float


class Sharpness(Result):
    """The distillation error (mean squared, in the teacher's prediction type) around a model's weights."""

    rho: float  # length of the step uphill
    loss: float  # L(w)
    gradient_norm: float  # |g|
    sharpness: float  # (L(w + rho g / |g|) - L(w)) / rho


class ModelDiagnosis(Result):
    """One model against its teacher."""

    prediction_type: str
    errors: list[TimestepError]
    sharpness: Sharpness


class ErrorPictures(Result):
    """Single images: a PNG each, a column a timestep, a row each of `rows`."""

    files: list[str]
    images: list[int]  # index in the reference
    timesteps: list[int]
    rows: list[str]
    low: float  # squared error of the darkest colour, and of the brightest; logarithmic between them
    high: float


class Diagnosis(Result):
    """diagnosis.json: why a student draws what it draws."""

    reference: Reference
    num_images: int  # of the reference, for the errors
    prediction_type: str  # the teacher's, in which predictions are compared
    models: dict[Literal["pruned", "student"], ModelDiagnosis]
    pictures: ErrorPictures


class TrainingSummary(Result):
    """The distillation in short; the curve is in train.jsonl."""

    kd: str
    steps: int
    batch_size: int
    steps_per_second: float  # of all steps, in whatever parts they were trained
    final: dict[str, float]  # mean of the logged quantities over the last tenth of the steps
    cache: dict[str, float] | None = None  # what the target cache, if any, read, computed and saved in all steps


class BudgetComparison(Result):
    """Predicted against measured, for the student that a profile chose."""

    not_comparable: str  # why the errors are null; empty: they are not
    predicted_share: float  # of the teacher's latency, in the profile
    measured_share: float  # in `BudgetCheck`
    latency_error: float | None  # predicted over measured share, minus 1
    memory_mb: float | None  # measured, of a process that runs only the student at batch 1
    memory_error: float | None  # predicted over measured, minus 1


class Report(Result):
    """report.json: everything above for one run, with the directions."""

    schema_version: int = SCHEMA_VERSION
    name: str
    teacher: str
    teacher_sha256: str | None = None  # names and places may change, and be others' later; null: an earlier version
    edgediff: str  # version
    recipe: dict[str, Any]
    reached: Reached
    training: TrainingSummary
    parity: dict[Role, Parity]
    builds: list[Build]
    latency: Latency
    quality: Quality
    budget: BudgetComparison | None = None  # null: no profile was asked
    diagnosis: Diagnosis | None = None  # null: `edgediff diagnose` has not been run
    directions: dict[str, Literal["lower", "higher"]] = DIRECTIONS


class StagePlan(Result):
    """One stage of a plan."""

    stage: str
    seconds: float  # estimated here, on this machine
    what: str


class Plan(Result):
    """What a recipe will do; nothing of it has been done."""

    teacher: str
    widths_before: dict[str, int]
    widths_after: dict[str, int]
    before: Cost
    after: Cost
    search: Search | None = None  # as if all channels mattered the same; null: no budget was given
    stages: list[StagePlan]
    memory_mib: float  # peak, estimated


class PrintedCount(Result):
    """A student's size beside the one that a paper prints, both to the digits of the latter."""

    of: Literal["params", "macs"]
    student: str
    published: str


class RecipeVerdict(Result):
    """What a recipe's check found: its student has no printed size (`ok`), has it, misses it with or without reason."""

    name: str
    status: Literal["ok", "equal", "explained", "differs", "invalid"]
    reason: str = ""
    evidence: str = ""  # where its figures come from: published, measured, extrapolated
    source: str = ""  # of the printed size
    params: int | None = None  # of the student as a stock diffusers model
    counts: list[PrintedCount] = []


class PruningRow(Result):
    """One way of pruning before any distillation, or the teacher itself."""

    name: str
    cost: Cost
    loss: float  # of the prediction on held-out images, mean over timesteps
    frechet_distance: float
    kid_mean: float
    noise_share: float | None = None


class PruningComparison(Result):
    """Ways of pruning one teacher to one size: the teacher first, then the students, the lowest loss first."""

    teacher: str
    target: dict[str, int]  # params or macs that stay
    profile: QualityProfile
    floor: float  # Fréchet distance of as many training images
    loss_images: int
    loss_timesteps: int
    rows: list[PruningRow]
    not_run: dict[str, str]  # way → why it is closed to this teacher


class Pruning(Reached):
    """What `edgediff prune` prints."""

    comparison: PruningComparison | None = None  # null: the ways of pruning were not compared
