"""Tables and figures of the finished cells of `extreme_compression.py`.

    python benchmarks/extreme_report.py

Reads benchmarks/results/extreme-compression.jsonl; writes extreme-compression.md beside it, curves, errors and samples
as PNG files into benchmarks/results/extreme-compression/, and shorter tables into docs/distillation.md and README.md,
between the comments that mark their place.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LINES, PICTURES = RESULTS / "extreme-compression.jsonl", RESULTS / "extreme-compression"
FRAME = RESULTS / "extreme-compression-frame.json"
SETS = {
    "main": "Students of 1.6 % of the parameters",
    "shape": "As many parameters, where they do more",
    "long": "Four times as long",
    "why": "What makes the difference",
    "cache": "How many teacher targets are enough",
    "ratio": "Larger students",
    "teacher": "Smaller teachers",
    "rate": "At lower learning rates",
    "weight": "At other weights of the distillation loss",
    "tune": "Sweeps on seed 100, which no other table uses",
}
SHOWN = ("main", "shape")  # students of 1.6 %, in the figures and in the short table
ONE_CHANGE = ("long", "why", "cache", "teacher", "rate")  # whose students differ in one setting from one of these
WORDS = {
    "student_prediction=v_prediction,timestep_weighting=angular": "v,angular",
    "student_prediction=v_prediction": "v",
    "student_prediction=sample": "x0",
    "shape=searched": "searched shape",
    "shape=shallow": "shallow shape",
}
COLUMNS = (  # sampler, metric, name, how a value is written
    ("free", "frechet_distance", "FD", "{:,.0f}"),
    ("free", "kid_mean", "KID", "{:.2f}"),
    ("free", "precision", "precision", "{:.2f}"),
    ("free", "recall", "recall", "{:.2f}"),
    ("free", "noise_share", "noise images", "{:.1%}"),
    ("free", "psnr_to_teacher", "PSNR, dB", "{:.1f}"),
    ("clipped", "frechet_distance", "FD, clipped", "{:,.0f}"),
    ("clipped", "kid_mean", "KID, clipped", "{:.2f}"),
    ("clipped", "noise_share", "noise images, clipped", "{:.1%}"),
)
SHORT = tuple(column for column in COLUMNS if column[1] in ("frechet_distance", "noise_share", "psnr_to_teacher"))
TOLD = (  # what README argues with, and the curves show
    *("none", "output", "place", "lift", "output,feature=0.01"),
    *("output, v, angular", "output,feature=0.01, v, angular"),
    *(
        "output, searched shape",
        "output, v, angular, searched shape",
        "output,feature=0.01, v, angular, searched shape",
    ),
)
BEGIN, END = "<!-- extreme students: written by benchmarks/extreme_report.py -->", "<!-- end of extreme students -->"

Line = dict[str, Any]
Column = tuple[str, str, str, str]


def groups(lines: list[Line], of: Collection[str]) -> dict[str, list[Line]]:
    """Return the lines of some sets by method and settings, the seeds of each together, the closest students first."""
    found: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line["set"] in of:
            found[label(line)].append(line)
    return dict(sorted(found.items(), key=lambda item: mean(item[1], "free", "frechet_distance")))


def told(lines: list[Line]) -> dict[str, list[Line]]:
    """Return those that README argues with."""
    return {name: of_name for name, of_name in groups(lines, SHOWN).items() if name in TOLD}


def label(line: Line) -> str:
    """Word what a cell learned from, as `--kd` reads it, and its other settings."""
    _, _, settings, _ = line["key"].split("/")
    for setting, word in WORDS.items():
        settings = settings.replace(setting, word)
    others = [setting for setting in settings.split(",") if setting != "-" and not setting.startswith("kd.")]
    return ", ".join([line["kd"], *others])


def values(lines: list[Line], sampler: str, metric: str) -> list[float]:
    return [line["scores"][sampler][metric] for line in lines if line["scores"][sampler].get(metric) is not None]


def mean(lines: list[Line], sampler: str, metric: str) -> float:
    return statistics.mean(values(lines, sampler, metric) or [float("inf")])


def table(lines: list[Line], of: str) -> list[str]:
    """Return one Markdown table: mean ± deviation over seeds, and the worst seed's FD with x0 not clipped."""
    head = [name for *_, name, _ in COLUMNS]
    rows = [f"| student | seeds | worst FD | {' | '.join(head)} |", f"|---|---:|---:|{'---:|' * len(head)}"]
    for name, scores in json.loads(FRAME.read_text())["scores"].items():
        rows.append(f"| *{name}* | | | {' | '.join(cells([{'scores': scores}], COLUMNS))} |")
    unchanged = compared(lines, of) if of in ONE_CHANGE else set()
    for name, of_name in groups(lines, [of, *SHOWN]).items():
        if name in unchanged or of_name[0]["set"] == of:
            worst = max(values(of_name, "free", "frechet_distance"))
            words = f"*{in_words(name)}*" if name in unchanged else in_words(name)
            rows.append(f"| {words} | {len(of_name)} | {worst:,.0f} | {' | '.join(cells(of_name, COLUMNS))} |")
    return rows


def compared(lines: list[Line], of: str) -> set[str]:
    """Return the students of 1.6 % that those of a set are like, but for one setting."""
    shown = {name: set(name.split(", ")) for name in groups(lines, SHOWN)}
    alike = [[base for base in shown if shown[base] < set(name.split(", "))] for name in groups(lines, [of])]
    return {max(bases, key=lambda base: len(shown[base])) for bases in alike if bases}


def cells(lines: list[Line], columns: Sequence[Column]) -> list[str]:
    """Return the columns of one row."""
    words = []
    for sampler, metric, _, form in columns:
        found = values(lines, sampler, metric)
        spread = f" ± {form.format(statistics.stdev(found))}" if len(set(found)) > 1 else ""
        words.append(f"{form.format(statistics.mean(found))}{spread}" if found else "–")
    return words


def summary(found: Mapping[str, list[Line]]) -> list[str]:
    """Return some students in short, as a Markdown table."""
    head = [name for *_, name, _ in SHORT]
    rows = [f"| student | seeds | {' | '.join(head)} |", f"|---|---:|{'---:|' * len(head)}"]
    return rows + [
        f"| {in_words(name)} | {len(of_name)} | {' | '.join(cells(of_name, SHORT))} |"
        for name, of_name in found.items()
    ]


def in_words(name: str) -> str:
    """Word a student for people who have not read the cells."""
    kd, *settings = name.split(", ")
    words = ", ".join(["no teacher" if kd == "none" else f"`{kd}`", *settings])
    first, *more = kd.split(",")
    if first == "output" and settings == ["v", "angular"]:
        words += f" (`--kd {','.join(['angular', *more])}`)"
    return words


def publish(table: list[str], page: Path) -> None:
    """Put a table into a page that shows it."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text("\n".join([f"{before}{BEGIN}", "", *table, "", f"{END}{after}"]), encoding="utf-8")


def curves(lines: list[Line]) -> None:
    """Draw FD against steps, and the error against timesteps, of the students that are told of."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
    for place, (name, of_name) in enumerate(told(lines).items()):
        style: dict[str, Any] = {"color": f"C{place}", "label": name, "linewidth": 1.8}
        style |= {"linestyle": "--" if ", v" in name else "-"}
        for line in of_name:
            if len(line["curve"]) > 1:
                steps, distances = zip(*((p["step"], p["frechet_distance"]) for p in line["curve"]), strict=True)
                left.plot(steps, distances, **style, marker="o", markersize=3)
        errors = np.mean([line["error"]["mse"] for line in of_name], axis=0)
        right.semilogy(of_name[0]["error"]["timesteps"], errors, **style)
    left.set(title="x0 not clipped, 500 images", xlabel="training steps", ylabel="Fréchet distance")
    right.set(
        title="Error of eps against the teacher's, mean over seeds", xlabel="timestep", ylabel="mean squared error"
    )
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=4, frameon=False)
    figure.tight_layout(rect=(0, 0.14, 1, 1))
    figure.savefig(PICTURES / "curves.png", dpi=110)
    plt.close(figure)


def samples(lines: list[Line]) -> None:
    """Put the first samples of one seed of every student of 1.6 % below each other."""
    pictures = {"teacher": PICTURES / "teacher.png"}
    for name, of_name in groups(lines, SHOWN).items():
        for line in of_name:
            file = PICTURES / f"{line['key'].replace('/', '_')}.png"
            if file.exists():
                pictures[name] = file
    rows = [np.asarray(Image.open(file)) for file in pictures.values()]
    scale, gap, margin = 2, 6, 280
    height, width = (side * scale for side in rows[0].shape)
    sheet = Image.new("L", (margin + width, len(rows) * (height + gap)), 255)
    pen = ImageDraw.Draw(sheet)
    for place, (row, name) in enumerate(zip(rows, pictures, strict=True)):
        top = place * (height + gap)
        sheet.paste(Image.fromarray(row).resize((width, height), Image.Resampling.NEAREST), (margin, top))
        pen.text((8, top + height // 2 - 6), name, fill=0)
    sheet.save(PICTURES / "samples.png", optimize=True)


def main() -> None:
    lines = [json.loads(line) for line in LINES.read_text().splitlines()]
    PICTURES.mkdir(parents=True, exist_ok=True)
    curves(lines)
    samples(lines)
    first, last = (choose(line["made"]["at"] for line in lines) for choose in (min, max))
    devices = sorted({line["made"]["device"] for line in lines})
    page = [
        "# Extreme compression of fashion-ddpm",
        "",
        f"{len(lines)} students trained from {first[:10]} to {last[:10]} on {', '.join(devices)}, one core each, by",
        "`extreme_compression.py`, whose cells hold every setting. Where a name says nothing else: the widths are",
        "one eighth of the teacher's, 63,465 parameters, 1.6 %; the weights fresh; 5,000 steps of 32 images; the",
        "learning rate 0.008 with a cosine to 0; the teacher's answers 32,768 cached ones. Names: what `--kd` reads,",
        "then what the student predicts, if not eps, and how timesteps are weighted, if not alike.",
        "",
        "1,000 images each, DDIM with 50 steps, x0 not clipped in the sampler, as the paper samples; clipped: to",
        "[-1, 1]. FD and KID are those of EfficientNet-Lite0's features, not Inception's; PSNR is to the teacher's",
        "image of the same seed; noise images have more noise for their contrast than any real one. Mean ± standard",
        "deviation over seeds; worst FD: of any seed. In italics: what the others of a table are compared with.",
        "",
        "![FD against steps, error against timesteps](extreme-compression/curves.png)",
        "",
        "![First samples: x0 not clipped above, clipped below](extreme-compression/samples.png)",
    ]
    for of, title in SETS.items():
        if groups(lines, [of]):
            page += ["", f"## {title}", "", *table(lines, of)]
    (RESULTS / "extreme-compression.md").write_text("\n".join(page) + "\n", encoding="utf-8")
    publish(summary(told(lines)), ROOT / "README.md")
    publish(summary(groups(lines, SHOWN)), ROOT / "docs" / "distillation.md")
    print("\n".join(page))


if __name__ == "__main__":
    main()
