"""A model's files in a folder or in a repository of the Hugging Face hub: lookup, revisions, downloads."""

import json
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies

from cadenza.core.checkpoint import WEIGHT_FILES, LazyTensor, has_weights, open_weights, read_file
from cadenza.core.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
_REPOSITORY = re.compile(r"(?!.*(?:--|\.\.))[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_METADATA_PATTERNS = ["*.json", "*.md", "*.model", "*.txt", "*.yaml"]


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
        return {name: tensor.load() for name, tensor in self.open_state_dict(prefixes).items()}

    def open_state_dict(self, prefixes: tuple[str, ...]) -> dict[str, LazyTensor]:
        """Return the tensors of `load_state_dict`, to be read one by one."""
        return self._read_weights(open_weights, prefixes)

    def _read_weights(self, read: Callable[[Path], Mapping[str, T]], prefixes: tuple[str, ...]) -> dict[str, T]:
        files, listed = self._weight_files(prefixes)
        weights = {name: x for file in files for name, x in read(file).items() if name.startswith(prefixes)}
        if listed is not None and (different := sorted(weights.keys() ^ listed)):
            raise CheckpointError(
                f"'{self.model}': {len(different)} weights are in the shards or in their index, but not in both: "
                f"{', '.join(different[:5])}; download or copy the whole model again"
            )
        return weights

    def _weight_files(self, prefixes: tuple[str, ...]) -> tuple[list[Path], set[str] | None]:
        """Return the files of the weights with these prefixes, and the weights that an index lists, if there is one."""
        for name in WEIGHT_FILES:
            if path := self.optional_file(name):
                return [path], None
            if index := self.optional_file(f"{name}.index.json"):
                weight_map = read_json_object(index).get("weight_map")
                if not isinstance(weight_map, dict) or any(Path(str(file)).name != file for file in weight_map.values()):
                    raise CheckpointError(f"{index} is not an index of shards in its folder; download or copy it again")
                listed = {name: file for name, file in weight_map.items() if name.startswith(prefixes)}
                paths = {file: self.optional_file(file) for file in sorted(set(listed.values()))}
                if missing := [file for file, path in paths.items() if path is None]:
                    raise CheckpointError(
                        f"'{self.model}' has {len(paths) - len(missing)} of {len(paths)} weight files; "
                        f"copy {', '.join(missing[:3])} too"
                    )
                return [path for path in paths.values() if path], set(listed)
        if self.folder and (shards := sorted(self.folder.glob("model-*-of-*.safetensors"))):  # our shards have no index
            return shards, None
        raise CheckpointError(
            f"'{self.model}' has no weights: {' or '.join(WEIGHT_FILES)} is needed; put the file there, or choose another model"
        )

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.model, name, revision=self.revision)
        return Path(path) if isinstance(path, str) else None

    def _download(self, name: str) -> Path | None:
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

        if not (reason := _unreachable_reason()):
            try:
                return Path(hf_hub_download(self.model, name, revision=self.revision))
            except LocalEntryNotFoundError as error:
                reason = str(error.__cause__ or error)
            except EntryNotFoundError:
                return None
            except (HfHubHTTPError, OSError) as error:
                reason = f"{type(error).__name__}: {error}"
        raise CheckpointError(
            f"'{self.model}' is not a folder here, its {name} is not on this machine, and the download failed: "
            f"{_first_line(reason)}. On a machine that can reach the hub, run: {_download_command(self.model, self.revision)} "
            "--include '*.json' --include '*.model' --include '*.safetensors' (and '*.bin' if it has no safetensors); "
            f"then copy 'models--{self.model.replace('/', '--')}' from its cache into {constants.HF_HUB_CACHE} here. "
            "Or add --local-dir FOLDER and give that folder as `model`"
        )


def read_folder(folder: Path) -> dict[str, "Tensor"]:
    """Return all weights of a folder by name, from the file or the shards that transformers writes."""
    return ModelSource(str(folder))._read_weights(read_file, ("",))


def download_snapshot(name: str, *, of: str = "", weight_files: Sequence[str] = ()) -> Path:
    """Return the local folder of the repository `name` (or `name@revision`), downloading what is missing.

    An interrupted download is continued and never taken for a model. `weight_files` are further names by which a folder
    counts as a model. Raise CheckpointError, with what to download and where to put it, if the hub cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    fix = f"run `{_download_command(repository, revision)} --local-dir {repository.rpartition('/')[2]}`, "
    fix += "copy that folder to this machine, load it by its path"
    for weights in ("*.safetensors", "*.bin"):  # the second only if the first matches nothing
        patterns = [*_METADATA_PATTERNS, weights]
        try:
            folder = Path(huggingface_hub.snapshot_download(repository, revision=revision or None, allow_patterns=patterns))
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
            raise CheckpointError(
                f"the hub has no model '{repository}', or it requires a login ({_first_line(error)}); check the name, "
                "or run `hf auth login`"
            ) from None
        except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError, ValueError) as error:
            raise CheckpointError(
                f"'{repository}'{of and f' ({of})'} is not on this machine, and the hub cannot be reached "
                f"({_first_line(error)}). On a machine that can reach it, {fix}"
            ) from None
        present = any((folder / file).exists() for file in weight_files) or any(folder.glob("model*.safetensors"))
        if present or has_weights(folder):
            return folder
    raise CheckpointError(
        f"{repository}: {folder} has no weights; the download was interrupted, or this repository holds no model that "
        f"can be loaded. Try again where the hub can be reached, or {fix}"
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


def _download_command(repository: str, revision: str | None) -> str:
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def _first_line(reason: object) -> str:
    return str(reason).strip().partition("\n")[0].rstrip(".")


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
