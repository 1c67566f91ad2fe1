"""A model's files in a folder or in a repository of the Hugging Face hub: lookup, revisions, downloads."""

import json
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cadenza.core.checkpoint import (
    WEIGHT_FILES,
    LazyTensor,
    as_state_dict,
    has_weights,
    load_torch_file,
    open_safetensors,
)
from cadenza.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_METADATA_PATTERNS = ["*.json", "*.md", "*.model", "*.txt", "*.yaml"]
_WEIGHT_PATTERNS = (["*.safetensors"], ["*.bin"])  # the second is downloaded only if the first matches nothing


@dataclass(frozen=True)
class ModelSource:
    """Model given as the path of a folder, or as the name of a hub repository with an optional revision."""

    model: str
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """Folder of the model, or None for a repository; raise CheckpointError if it can be neither."""
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if path.exists() or not _REPOSITORY.fullmatch(self.model):
            raise CheckpointError(
                f"folder not found: '{self.model}'; give the folder of a model, or the name of a repository, "
                "such as google-t5/t5-base (if a saved system names the folder, copy that system again, whole)"
            )
        return None

    @property
    def resolved_revision(self) -> str | None:
        """Full commit hash of the revision if the repository is in the local cache, else the revision as given."""
        path = None if self.folder else self._cached("config.json")
        parts = path.parts if path else ()
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else self.revision

    def optional_file(self, name: str) -> Path | None:
        """Return the path of a file of the model, downloading it if needed; None if the model has no such file."""
        if folder := self.folder:
            path = folder / name
            return path if path.is_file() else None
        return self._cached(name) or self._download(name)

    def required_file(self, *names: str, of: str = "a model") -> Path:
        """Return the first of these files that the model has; raise CheckpointError if it has none of them."""
        for name in names:
            if path := self.optional_file(name):
                return path
        raise CheckpointError(
            f"'{self.model}' has no {' or '.join(names)}, so it is not {of} that can be read; "
            f"{'copy the whole folder again' if self.folder else 'choose another repository'}"
        )

    def read_json(self, name: str, *, of: str = "a model") -> dict[str, Any]:
        """Return the object in a JSON file of the model."""
        return read_json_object(self.required_file(name, of=of))

    def load_state_dict(self, prefixes: tuple[str, ...]) -> dict[str, "Tensor"]:
        """Return the tensors whose names begin with one of `prefixes`; safetensors are preferred, no code is run."""
        return {key: tensor.load() for key, tensor in self.open_state_dict(prefixes).items()}

    def open_state_dict(self, prefixes: tuple[str, ...]) -> dict[str, LazyTensor]:
        """Return the tensors of `load_state_dict`, to be read one by one."""
        for name in WEIGHT_FILES:
            if path := self.optional_file(name):
                return _open_weights(path, prefixes)
            if self.optional_file(f"{name}.index.json"):
                weight_map = self.read_json(f"{name}.index.json").get("weight_map", {})
                files = sorted({file for key, file in weight_map.items() if key.startswith(prefixes)})
                return {key: x for file in files for key, x in _open_weights(self.required_file(file), prefixes).items()}
        if self.folder and (shards := sorted(self.folder.glob("model-*-of-*.safetensors"))):  # our shards have no index
            return {key: x for path in shards for key, x in _open_weights(path, prefixes).items()}
        raise CheckpointError(
            f"'{self.model}' has no weights: {' or '.join(WEIGHT_FILES)} is needed; put the file there, or choose another model"
        )

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.model, name, revision=self.revision)
        return Path(path) if isinstance(path, str) else None

    def _download(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        if reason := _unreachable_reason():
            raise CheckpointError(self._unavailable(name, reason))
        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except LocalEntryNotFoundError as error:
            raise CheckpointError(self._unavailable(name, str(error.__cause__ or error))) from None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError) as error:
            raise CheckpointError(self._unavailable(name, f"{type(error).__name__}: {error}")) from None

    def _unavailable(self, name: str, reason: str) -> str:
        from huggingface_hub import constants

        revision = f" --revision {self.revision}" if self.revision else ""
        reason = reason.strip().partition("\n")[0].rstrip(".")
        return (
            f"'{self.model}' is not a folder here, its {name} is not on this machine, and the download failed: {reason}. "
            f"On a machine that can reach the hub, run: hf download {self.model}{revision} "
            "--include '*.json' --include '*.model' --include '*.safetensors' (and '*.bin' if it has no safetensors); "
            f"then copy 'models--{self.model.replace('/', '--')}' from its cache into {constants.HF_HUB_CACHE} here. "
            "Or add --local-dir FOLDER and give that folder as `model`"
        )


def download_snapshot(name: str, *, of: str = "", weight_files: Sequence[str] = ()) -> Path:
    """Return the local folder of the repository `name` (or `name@revision`), downloading what is missing.

    An interrupted download is continued and never taken for a model. `weight_files` are further names by which a folder
    counts as a model. Raise CheckpointError, with what to download and where to put it, if the hub cannot be reached.
    """
    repository, _, revision = name.partition("@")
    for patterns in _WEIGHT_PATTERNS:
        folder = _download_snapshot(repository, revision or None, [*_METADATA_PATTERNS, *patterns], of)
        names = any((folder / file).exists() for file in weight_files)
        if names or has_weights(folder) or any(folder.glob("model*.safetensors")):
            return folder
    raise CheckpointError(
        f"{repository}: {folder} has no weights; the download was interrupted, or this repository holds no model that "
        f"can be loaded. Try again where the hub can be reached, or {_manual_download(repository, revision)}"
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; raise CheckpointError if it is not readable or not an object."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}); download or copy it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a mapping; download or copy it again")
    return data


def _open_weights(path: Path, prefixes: tuple[str, ...]) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return {key: tensor for key, tensor in open_safetensors(path).items() if key.startswith(prefixes)}
    state_dict = as_state_dict(load_torch_file(path), source=str(path))
    return {key: LazyTensor.from_tensor(x) for key, x in state_dict.items() if key.startswith(prefixes)}


def _download_snapshot(repository: str, revision: str | None, patterns: list[str], of: str) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(
            f"the hub has no model '{repository}', or it requires a login ({reason}); check the name, or run `hf auth login`"
        ) from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise CheckpointError(
            f"'{repository}'{of and f' ({of})'} is not on this machine, and the hub cannot be reached ({reason}). "
            f"On a machine that can reach it, {_manual_download(repository, revision)}"
        ) from None


def _manual_download(repository: str, revision: str | None) -> str:
    folder = repository.rpartition("/")[2]
    option = f" --revision {revision}" if revision else ""
    return f"run `hf download {repository}{option} --local-dir {folder}`, copy that folder to this machine, load it by its path"


def _unreachable_reason() -> str:
    """Return why the hub cannot be reached, known without its client's long retries; empty if it may answer."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    host = urlsplit(constants.ENDPOINT).hostname
    if getproxies() or not host:
        return ""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"no network ({error.strerror or error})"
    return ""
