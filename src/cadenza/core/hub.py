"""Pretrained: the files of somebody's model, in a folder or in a repository of the hub."""

import json
import pickle
import re
import socket
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from cadenza.core.checkpoint import LazyTensor, has_weights, open_safetensors
from cadenza.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first there is is read, whole or in shards


@dataclass(frozen=True)
class ModelSource:
    """A model by the path of its folder, or by the name of its repository and a revision of that."""

    model: str
    revision: str | None = None

    @property
    def folder(self) -> Path | None:
        """The model's folder; None where it is a repository."""
        path = Path(self.model).expanduser()
        if path.is_dir():
            return path
        if path.exists() or not _REPOSITORY.fullmatch(self.model):
            raise CheckpointError(
                f"there is no folder '{self.model}'; give the folder of a model, or the name of a repository, "
                "such as google-t5/t5-base (where a saved system names the folder, copy that system again, whole)"
            )
        return None

    @property
    def resolved_revision(self) -> str | None:
        """The full name of the revision, where the repository has been looked at on this machine."""
        path = None if self.folder else self._cached("config.json")
        parts = path.parts if path else ()
        return parts[parts.index("snapshots") + 1] if "snapshots" in parts else self.revision

    def optional_file(self, name: str) -> Path | None:
        """A file of the model, downloaded unless it is on this machine; None where the model has no such file."""
        if folder := self.folder:
            path = folder / name
            return path if path.is_file() else None
        return self._cached(name) or self._download(name)

    def required_file(self, *names: str, of: str = "a model") -> Path:
        """The first of some files that the model has; `of` says of what it is a part."""
        for name in names:
            if path := self.optional_file(name):
                return path
        raise CheckpointError(
            f"'{self.model}' has no {' or '.join(names)}, so it is not {of} that can be read; "
            f"{'copy the whole folder again' if self.folder else 'choose another repository'}"
        )

    def read_json(self, name: str, *, of: str = "a model") -> dict[str, Any]:
        """The mapping in a JSON file of the model."""
        return read_json_object(self.required_file(name, of=of))

    def load_state_dict(self, prefixes: tuple[str, ...]) -> dict[str, "Tensor"]:
        """The tensors whose names begin with one of `prefixes`; safetensors are preferred, and nothing can run code."""
        return {key: record.load() for key, record in self.open_state_dict(prefixes).items()}

    def open_state_dict(self, prefixes: tuple[str, ...]) -> dict[str, LazyTensor]:
        """The same tensors, to be read one by one."""
        for name in _WEIGHTS:
            if path := self.optional_file(name):
                return _under(prefixes, path)
            if self.optional_file(f"{name}.index.json"):
                shards = self.read_json(f"{name}.index.json").get("weight_map", {})
                files = {file for key, file in shards.items() if key.startswith(prefixes)}
                return {key: x for file in sorted(files) for key, x in _under(prefixes, self.required_file(file)).items()}
        if self.folder and (parts := sorted(self.folder.glob("model-*-of-*.safetensors"))):  # without an index, as we save
            return {key: x for path in parts for key, x in _under(prefixes, path).items()}
        raise CheckpointError(
            f"'{self.model}' has no weights: {' or '.join(_WEIGHTS)} is needed; put the file there, or choose another model"
        )

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.model, name, revision=self.revision)
        return Path(path) if isinstance(path, str) else None

    def _download(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        if reason := _unreachable():
            raise CheckpointError(self._absent(name, reason))
        try:
            return Path(hf_hub_download(self.model, name, revision=self.revision))
        except LocalEntryNotFoundError as error:
            raise CheckpointError(self._absent(name, str(error.__cause__ or error))) from None
        except EntryNotFoundError:
            return None
        except (HfHubHTTPError, OSError) as error:
            raise CheckpointError(self._absent(name, f"{type(error).__name__}: {error}")) from None

    def _absent(self, name: str, reason: str) -> str:
        from huggingface_hub import constants

        revision = f" --revision {self.revision}" if self.revision else ""
        reason = reason.strip().partition("\n")[0].rstrip(".")
        return (
            f"'{self.model}' is no folder here, its {name} is not on this machine, and the hub did not give it: {reason}. "
            f"Where the hub can be reached, run: hf download {self.model}{revision} "
            "--include '*.json' --include '*.model' --include '*.safetensors' (and '*.bin' where it has no safetensors); "
            f"then copy 'models--{self.model.replace('/', '--')}' from its cache into {constants.HF_HUB_CACHE} here. "
            "Or add --local-dir FOLDER and give that folder as `model`"
        )


def read_json_object(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file."""
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not readable as JSON ({error}); download or copy it again") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} is not a mapping; download or copy it again")
    return data


def check_state_dict(weights: Mapping[str, "Tensor"], wanted: Mapping[str, "Tensor"], source: str) -> None:
    """Raises CheckpointError unless every wanted weight is there in its shape and finite, and no other."""
    compare_state_dicts(weights, wanted, source)
    raise_if_not_finite([key for key in sorted(wanted) if not weights[key].isfinite().all()], source)


def compare_state_dicts(weights: Mapping[str, Any], wanted: Mapping[str, Any], source: str) -> None:
    """Raises CheckpointError unless every wanted weight is there in its shape, and no other."""
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(weights[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & weights.keys())
        if tuple(weights[key].shape) != tuple(wanted[key].shape)
    ]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"'{source}': the weights do not belong to the config: {len(missing)} missing {missing[:5]}, "
            f"{len(unknown)} unknown {unknown[:5]}, {len(shapes)} misshapen {shapes[:5]}; copy the whole model again"
        )


def raise_if_not_finite(broken: Sequence[str], source: str) -> None:
    """Raises CheckpointError that names weights with numbers that are not finite, if there are any."""
    if broken:
        raise CheckpointError(f"'{source}': {len(broken)} weights are not finite ({', '.join(broken[:5])}); get another copy")


def _under(prefixes: tuple[str, ...], path: Path) -> dict[str, LazyTensor]:
    if path.suffix == ".safetensors":
        return {key: record for key, record in open_safetensors(path).items() if key.startswith(prefixes)}
    import torch

    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))  # not all of it is read
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path} holds more than weights and is not opened, as that could run code: {error}") from None
    except (OSError, EOFError, RuntimeError) as error:
        raise CheckpointError(f"{path} is not a whole file of weights ({error}); copy it again") from None
    return {key: LazyTensor.from_tensor(x) for key, x in held.items() if key.startswith(prefixes)}


def _unreachable() -> str:
    """Why the hub need not be tried, as its client tries for long; empty where it may answer."""
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


SMALL = ["*.json", "*.md", "*.model", "*.txt", "*.yaml"]  # what stands beside weights
FIRST, SECOND = ["*.safetensors"], ["*.bin"]  # the other kind is asked for only where the first is not there


def download_snapshot(name: str, *, of: str = "", weight_files: Sequence[str] = ()) -> Path:
    """Return the local folder of the repository `name` (or `name@revision`), downloading what is missing.

    An interrupted download is continued and never taken for a model. `weight_files` are further names by which a folder
    counts as a model. Raise CheckpointError, with what to download and where to put it, if the hub cannot be reached.
    """
    repository, _, revision = name.partition("@")
    folder = _download(repository, revision or None, [*SMALL, *FIRST], of)
    if not _has_model(folder, weight_files):
        folder = _download(repository, revision or None, [*SMALL, *SECOND], of)
    if not _has_model(folder, weight_files):
        raise CheckpointError(
            f"{repository}: {folder} has no weights; the download was broken off, or this repository holds no model that "
            f"can be loaded. Try again where the hub can be reached, or {_by_hand(repository, revision)}"
        )
    return folder


def _has_model(folder: Path, weight_files: Sequence[str]) -> bool:
    """Return whether a folder holds weights as we or transformers save them, or one of `weight_files`."""
    return (
        has_weights(folder) or any((folder / name).exists() for name in weight_files) or any(folder.glob("model*.safetensors"))
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
