"""The model hub: a repository's files on this machine, whole or not at all."""

from pathlib import Path
from typing import Any

from cadenza.core.errors import CheckpointError
from cadenza.core.pretrained import read_json_object
from cadenza.importers.package import CODEC, LM
from cadenza.importers.weights import has_weights

SMALL = ["*.json", "*.md", "*.model", "*.txt", "*.yaml"]  # what stands beside weights
FIRST, SECOND = ["*.safetensors"], ["*.bin"]  # the other kind is asked for only where the first is not there


def download_snapshot(name: str, *, of: str = "") -> Path:
    """The folder of the repository `name` (or `name@revision`), downloaded where it is not here yet.

    CheckpointError says what to download and where to put it where the hub cannot be reached; a download that was
    broken off is continued, and never taken for the model.
    """
    repository, _, revision = name.partition("@")
    folder = _download(repository, revision or None, [*SMALL, *FIRST], of)
    if not _model(folder):
        folder = _download(repository, revision or None, [*SMALL, *SECOND], of)
    if not _model(folder):
        raise CheckpointError(
            f"{repository}: {folder} has no weights; the download was broken off, or this repository holds no model that "
            f"can be loaded. Try again where the hub can be reached, or {_by_hand(repository, revision)}"
        )
    return folder


def _model(folder: Path) -> bool:
    """Whether there is a model: one of ours, of transformers, or of AudioCraft."""
    return (
        has_weights(folder)
        or any((folder / name).exists() for name in (LM, CODEC))
        or bool([*folder.glob("model*.safetensors")])
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The mapping in a folder's config.json."""
    return read_json_object(folder / "config.json")


def _download(repository: str, revision: str | None, patterns: list[str], of: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"there is no model '{repository}' in the hub, or it asks for a login ({reason}); check it, or run `hf auth login`"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise CheckpointError(
            f"'{repository}'{of and f' ({of})'} is not on this machine, and the hub cannot be asked ({reason}). "
            f"Where it can be reached, {_by_hand(repository, revision)}"
        ) from None


def _by_hand(repository: str, revision: str | None) -> str:
    folder = repository.rpartition("/")[2]
    at = f" --revision {revision}" if revision else ""
    return f"run `hf download {repository}{at} --local-dir {folder}`, copy that folder to this machine and load it by its path"
