"""The verb `profile`: a teacher → the latency table of this machine, which latency and memory budgets are held to."""

from __future__ import annotations

from pathlib import Path

from edgediff import families, model_folder, teacher
from edgediff.artifacts import cpu_name, read_json, result_up_to_date, write_result
from edgediff.budgets.measure import measure
from edgediff.budgets.table import TABLE_VERSION, LatencyTable, read_table, teacher_digest
from edgediff.output import Output, number


def profile(teacher_name: str, out: Path, threads: int, output: Output) -> LatencyTable:
    """Write the table of this machine to `out`, for ONNX Runtime on so many threads; nothing is done when it is there.

    Raises: BadInputError for an unknown teacher or one that cannot be pruned.
    """
    source = teacher.resolve(teacher_name)
    stored = read_json(model_folder.component(source.folder) / "config.json")
    family = families.of(stored["_class_name"])
    shape = dict(family.build(stored, "meta").config)
    config = {"threads": threads, "device": cpu_name(), "version": TABLE_VERSION}
    inputs = {"teacher_config": teacher_digest(shape)}
    if result_up_to_date(out, stage="profile", config=config, inputs=inputs):
        table = read_table(out, shape)
        output.stage("profile", f"up to date: {_sentence(table)}")
        return table
    output.stage("profile", f"timing the blocks of {source.name} on {config['device']}, {threads} thread(s)")
    table = measure(family, shape, source.name, threads, output)
    write_result(out, table.model_dump(mode="json"), stage="profile", config=config, inputs=inputs)
    output.stage("profile", f"{_sentence(table)}: `{out}`")
    return table


def _sentence(table: LatencyTable) -> str:
    kinds = len({block.kind for block in table.blocks})
    return (
        f"{len(table.blocks)} blocks of {kinds} kinds in {len(table.probes)} models; "
        f"a step of the teacher takes {number(table.teacher_ms, ' ms')}"
    )
