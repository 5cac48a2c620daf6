"""Imports go downward only, so that any layer can be read without the ones above it."""

import ast
from pathlib import Path

import edgediff

PACKAGE = Path(edgediff.__file__).parent
# From top to bottom; a layer may import itself and what stands below it.
VERBS = {
    *("prune", "distill", "export", "build", "benchmark", "evaluate", "diagnose", "report", "check", "doctor", "plan"),
    *("train_teacher", "train_autoencoder", "generate", "profile"),
}
LAYERS = [
    *("__main__", "cli", "pipeline", "check_recipes", "compare_prunings"),
    *sorted(VERBS),
    *("teacher_card", "class_accuracy", "quality", "reporting", "distillation", "diagnostics"),
    *("training", "asked"),
    "samples",
    "budgets",
    *("skeleton", "roles", "backends", "model_folder", "teacher", "registry"),
    "encoding",
    *("pruning", "losses", "metrics", "data", "families"),
    "diffusion",
    *("diffusers_config", "output", "results", "recipe", "validation", "run", "artifacts", "interrupts", "errors"),
]


def edgediff_imports(source: str) -> set[str]:
    modules = [
        name
        for node in ast.walk(ast.parse(source))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [f"{node.module}.{alias.name}" for alias in node.names]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    ]
    return {name.split(".")[1] for name in modules if name.startswith("edgediff.")} & set(LAYERS)


def test_every_module_stands_in_a_layer():
    names = {path.stem for path in PACKAGE.iterdir() if path.name not in ("__init__.py", "__pycache__", "zoo")}
    assert names == set(LAYERS)


def test_imports_go_downward_only():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        if path.parent != PACKAGE or path.stem in LAYERS
        for name in edgediff_imports(path.read_text())
        if LAYERS.index(name) < LAYERS.index(path.relative_to(PACKAGE).parts[0].removesuffix(".py"))
    ]
    assert not upward


def test_verbs_never_import_each_other():
    crossing = [
        f"{verb} imports {name}"
        for verb in VERBS
        for name in edgediff_imports((PACKAGE / f"{verb}.py").read_text()) & VERBS
    ]
    assert not crossing
