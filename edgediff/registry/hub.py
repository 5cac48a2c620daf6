"""Pipelines on the Hugging Face hub: found whole in this machine's cache, or fetched into it; never a pickle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from edgediff.artifacts import naming_full_disk, read_object

Reason = Literal["gated", "not found", "not reached", "HF_HUB_OFFLINE is set", "no safetensors weights"]

# A pipeline's folders, or the root where its only model is (DDPM's); checkpoints of other formats lie at the root too.
WANTED = (
    *("README.md", "model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model*.safetensors"),
    *("*/*.json", "*/*.txt", "*/*.model", "*/*.safetensors"),
)
# The same weights again: in half precision, before averaging, or (two folders of Stable Diffusion) in other files.
UNWANTED = ("*.fp16*", "*non_ema*", "text_encoders/*", "vae_1_0/*")
DENOISER = re.compile(r"((unet|transformer)/)?diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors")
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")  # folders that no training needs


class UnavailableError(Exception):
    """No repository gave its files. Args: reasons: repository → why."""

    def __init__(self, reasons: dict[str, Reason]) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons


def is_id(name: str) -> bool:
    """Return whether `name` can be a repository of an owner, `org/name`."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def cached(repositories: Iterable[str]) -> Path | None:
    """Return the first pipeline folder that is whole in the hub's cache on this machine; asks no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    for repository in repositories:
        try:
            folder = Path(snapshot_download(repository, local_files_only=True, allow_patterns=["model_index.json"]))
        except LocalEntryNotFoundError:
            continue
        if _is_whole(folder):
            return folder
    return None


def fetch(repositories: Sequence[str]) -> Path:
    """Download a pipeline from the first of the repositories that gives it, and return its folder in the cache.

    Raises: UnavailableError when none does; StageFailedError when the disk is full.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    http_error: Any = HfHubHTTPError.__bases__[0]  # of the HTTP library that the hub's client happens to use
    reasons: dict[str, Reason] = {}
    for repository in repositories:
        if constants.HF_HUB_OFFLINE:
            reasons[repository] = "HF_HUB_OFFLINE is set"
            continue
        try:
            # Looked at first, because without a network a partly filled cache would pass for the whole repository.
            if not _has_denoiser(HfApi().list_repo_files(repository)):
                reasons[repository] = "no safetensors weights"
                continue
            with naming_full_disk(Path(constants.HF_HUB_CACHE)):
                return Path(snapshot_download(repository, allow_patterns=[*WANTED], ignore_patterns=[*UNWANTED]))
        except GatedRepoError:
            reasons[repository] = "gated"
        except (RepositoryNotFoundError, RevisionNotFoundError):
            reasons[repository] = "not found"
        except (LocalEntryNotFoundError, http_error, ConnectionError, TimeoutError):
            reasons[repository] = "not reached"
    raise UnavailableError(reasons)


def _has_denoiser(files: Iterable[str]) -> bool:
    return any(DENOISER.fullmatch(file) for file in files)


def _is_whole(folder: Path) -> bool:
    """Tell whether a snapshot has what a pipeline is made of; the hub's own cache knows single files only."""
    weights = (path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors") if path.is_file())
    if not (folder / "model_index.json").is_file() or not _has_denoiser(weights):
        return False
    parts = read_object(folder / "model_index.json").items()
    needed = [name for name, part in parts if isinstance(part, list) and part[0] and name not in OPTIONAL]
    shards = {
        index.parent / shard
        for index in folder.rglob("*.safetensors.index.json")
        for shard in read_object(index)["weight_map"].values()
    }
    at_the_root = all((folder / name).is_file() for name in ("config.json", "scheduler_config.json"))
    return (at_the_root or all((folder / name).is_dir() for name in needed)) and all(map(Path.is_file, shards))
