"""The parts of a diffusers pipeline folder that encode: which files they are, and loading them; safetensors only."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from edgediff.artifacts import digest, read_object, sha256
from edgediff.errors import BadInputError, CorruptArtifactError

VARIANTS = (None, "fp16")  # the first that is there is loaded; every one of them in float32
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def fingerprint(folder: Path, stem: str) -> str:
    """Return one sha256 for everything that `load` reads: the config and the weights.

    Args: stem: how the weights' file begins: `model` (transformers), `diffusion_pytorch_model` (diffusers).
    Raises: BadInputError for a config or weights that are missing, and for weights that are pickled.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise BadInputError(f"config not found: `{config}`", "fetch the whole pipeline")
    return digest({path.name: sha256(path) for path in (config, *weights(folder, stem)[1])})


def load(kind: Any, folder: Path, stem: str) -> Any:
    """Load a model of a stock class in float32 evaluation mode, whatever precision the files hold.

    Raises: what `fingerprint` raises; CorruptArtifactError when weights are damaged or do not fit the config.
    """
    variant, _ = weights(folder, stem)
    dtype = "torch_dtype" if stem.startswith("diffusion") else "dtype"  # as diffusers and transformers call it
    try:
        with quiet():
            model, loading = kind.from_pretrained(
                folder,
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                **{dtype: torch.float32},
            )
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, OSError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise CorruptArtifactError(f"weights and config do not fit each other in `{folder}`", first) from error
    missing = sorted(map(str, loading["missing_keys"]))  # filled with noise by both libraries
    if missing:
        raise CorruptArtifactError(
            f"weights and config do not fit each other in `{folder}`", f"missing keys: {', '.join(missing[:5])}"
        )
    return model.eval()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep diffusers and transformers, where they are in use, to errors: what they remark on is looked at here."""
    libraries = [
        importlib.import_module(f"{name}.utils.logging")
        for name in ("diffusers", "transformers")
        if name in sys.modules
    ]
    before = [(library, library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, level, bars in before:
            library.set_verbosity(level)
            if bars:
                library.enable_progress_bar()


def weights(folder: Path, stem: str) -> tuple[str | None, list[Path]]:
    """Return the variant of the weights to load, and their files: one, or an index and its shards.

    Raises: BadInputError for weights that are missing or pickled.
    """
    for variant in VARIANTS:
        dotted = f".{variant}" if variant else ""
        single, index = folder / f"{stem}{dotted}.safetensors", folder / f"{stem}.safetensors.index{dotted}.json"
        if single.is_file():
            return variant, [single]
        if index.is_file():
            shards = sorted({folder / name for name in read_object(index).get("weight_map", {}).values()})
            for shard in shards:
                if not shard.is_file():
                    raise BadInputError(f"weights not found: `{shard}`", "fetch the whole pipeline")
            return variant, [index, *shards]
    pickles = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise BadInputError(
            f"weights are pickled, which can run code when loaded: `{pickles[0]}`",
            "convert them once where you trust them: `pipeline.save_pretrained(folder, safe_serialization=True)`",
        )
    raise BadInputError(f"weights not found: `{folder / stem}.safetensors`", "fetch the whole pipeline")
