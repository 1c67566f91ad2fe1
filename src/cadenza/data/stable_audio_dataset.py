"""Dataset configs of stable-audio-tools: `audio_dir`, local WebDataset and `pre_encoded` folders.

A `custom_metadata_module` names a Python file, which is never run. If you trust it, pass its function by the id of the
dataset: `to_item={"my_audio": CustomMetadata(module.get_custom_metadata)}`.
"""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cadenza.core.errors import DataError, SpecError
from cadenza.core.spec import Spec
from cadenza.data import webdataset
from cadenza.data.encoded_dataset import PreEncodedFolder, scan_pre_encoded
from cadenza.data.items import Item, ReadReport, SegmentInfo, ToItem
from cadenza.data.manifest import Manifest, read_json, scan_folder
from cadenza.dsp.audio import Audio

ToItems = ToItem | Mapping[str, ToItem] | None  # one function for all datasets, or one for each id


class DatasetEntry(Spec):
    """One dataset of a config."""

    id: str = Field(min_length=1)
    path: str | None = None
    s3_path: str | None = None
    profile: str | None = None
    custom_metadata_module: str | None = None
    latent_crop_length: int | None = Field(None, ge=1)  # documented here, although their code reads it from the config

    @model_validator(mode="after")
    def _check_local(self) -> "DatasetEntry":
        if self.s3_path is not None or self.path is None or self.path.startswith(("s3://", "pipe:", "http:", "https:")):
            raise ValueError(f"'{self.id}' is not on this machine; download it, and set 'path' to its folder")
        return self


class DatasetConfig(Spec):
    """A dataset config, including keys without effect here and keys that are refused."""

    dataset_type: Literal["audio_dir", "wds", "s3", "pre_encoded"]
    datasets: tuple[DatasetEntry, ...] = Field(min_length=1)
    random_crop: bool | None = None
    latent_crop_length: int | None = Field(None, ge=1)
    min_length_sec: float | None = Field(None, ge=0)
    max_length_sec: float | None = Field(None, gt=0)
    latent_extension: str = "npy"
    pre_encoded: bool = False
    remove_silence: bool = False
    silence_threshold: Any = None  # of remove_silence
    max_silence_duration: Any = None  # of remove_silence
    volume_norm: bool = False
    volume_norm_param: Any = None
    drop_last: bool = True  # no effect: batches are always full
    epoch_steps: int | None = None  # no effect: the training config sets the steps
    resampled_shards: bool = True  # no effect: shuffling is over all shards

    @field_validator("remove_silence", "volume_norm")
    @classmethod
    def _check_unchanged(cls, value: bool) -> bool:
        if value:
            raise ValueError("is not supported; process the audio files beforehand, and set this to false")
        return value

    @model_validator(mode="after")
    def _check(self) -> "DatasetConfig":
        if self.latent_extension.removeprefix(".") != "npy":
            raise ValueError(f"latent_extension '{self.latent_extension}' is not supported. Available: npy")
        if self.pre_encoded:
            raise ValueError("encoded clips are not read from shards; unpack them, and use dataset_type pre_encoded")
        names = [entry.id for entry in self.datasets]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two datasets have the id '{duplicates[0]}'; rename one")
        return self


def load_dataset_config(path: str | Path, *, to_item: ToItems = None) -> tuple[Manifest | PreEncodedFolder, ReadReport]:
    """Return the clips of a config, and a report of broken ones.

    Relative paths are looked up in the current folder, then in that of the config.
    """
    path = Path(path)
    try:
        config = DatasetConfig.parse(read_json(path, fix="use a JSON file"), source=str(path))
    except SpecError as error:
        raise DataError(str(error)) from None
    functions = _transforms(config, to_item, path)
    folders = {entry.id: _find_folder(entry, path) for entry in config.datasets}
    transform = partial(_apply, functions) if functions else None
    if config.dataset_type == "pre_encoded":
        clips = [clip for name, folder in folders.items() for clip in scan_pre_encoded(folder, prefix=f"{name}/").clips]
        shortest, longest = config.min_length_sec or 0, config.max_length_sec or math.inf
        clips = [clip for clip in clips if clip.total is None or shortest <= clip.total <= longest]
        if not clips:
            raise DataError(f"{path}: no clip has a length from min_length_sec to max_length_sec; widen them")
        lengths = {config.latent_crop_length, *(entry.latent_crop_length for entry in config.datasets)} - {None}
        if len(lengths) > 1:
            raise DataError(f"{path}: latent_crop_length has conflicting values; set it once")
        frames = next(iter(lengths), None)
        return PreEncodedFolder(clips, transform, bool(config.random_crop), frames), ReadReport(read=len(clips))
    all_clips, report = [], ReadReport()
    for name, folder in folders.items():
        if config.dataset_type == "audio_dir":
            manifest, part = scan_folder(folder)
        elif shards := webdataset.list_shards(folder):
            manifest, part = webdataset.load_shards(shards)
        else:
            raise DataError(f"{folder}: no .tar file found; use a folder of shards, or dataset_type audio_dir for audio files")
        all_clips += [replace(clip, id=f"{name}/{clip.id}") for clip in manifest.clips]
        report.broken |= {f"{name}/{broken}": reason for broken, reason in part.broken.items()}
    report.read = len(all_clips)
    return Manifest(path.parent, all_clips, transform, config.random_crop is not False), report


def dataset_type(path: str | Path) -> str | None:
    """Return the `dataset_type` in a JSON file; None if it is not a dataset config."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
    except (OSError, ValueError):
        return None
    return str(data["dataset_type"]) if isinstance(data, dict) and "dataset_type" in data else None


def _apply(functions: Mapping[str, ToItem], metadata: dict[str, Any], segment: SegmentInfo) -> Item | None:
    """Apply the function of the dataset whose id is the prefix of the clip's id."""
    names = [name for name in functions if segment.id.startswith(f"{name}/")]
    return functions[max(names, key=len)](metadata, segment) if names else metadata


@dataclass(frozen=True)
class CustomMetadata:
    """A `get_custom_metadata(info, audio)` of stable-audio-tools as a `to_item`.

    `__reject__` rejects the segment and `__audio__` adds audio conditions; `audio` [c, t] is the segment.
    """

    function: Callable[[dict[str, Any], Any], Mapping[str, Any]]

    def __call__(self, metadata: dict[str, Any], segment: SegmentInfo) -> Item | None:
        audio = segment.audio
        times = {"seconds_start": int(segment.start), "seconds_total": -int(-segment.total // 1)}
        info = {**metadata, **times, "path": segment.source, "relpath": segment.id.partition("/")[2]}
        info["sample_rate"] = audio.sample_rate
        custom = dict(self.function(info, audio.wave[0]))
        if custom.pop("__reject__", False):
            return None
        waves = {name: Audio(wave[None], audio.sample_rate) for name, wave in custom.pop("__audio__", {}).items()}
        if unknown := [name for name in custom if name.startswith("__")]:
            raise DataError(f"{segment.source}: metadata key '{unknown[0]}' is not supported; return plain values")
        return {**metadata, **custom, **waves}


def _transforms(config: DatasetConfig, to_item: ToItems, path: Path) -> dict[str, ToItem]:
    """Return functions by dataset; raise DataError if the config names a Python module and no function was passed."""
    names = [entry.id for entry in config.datasets]
    functions = {} if to_item is None else dict(to_item) if isinstance(to_item, Mapping) else dict.fromkeys(names, to_item)
    if unknown := sorted(set(functions) - set(names)):
        raise DataError(f"{path}: to_item names '{unknown[0]}', which is not a dataset. Available: {', '.join(names)}")
    for entry in config.datasets:
        if entry.custom_metadata_module is not None and entry.id not in functions:
            raise DataError(
                f"{path}: '{entry.id}' names code to run, {entry.custom_metadata_module}. Code named by a file is not run. "
                "If you trust it, import it and pass its function: load_dataset_config(config, to_item={"
                f"'{entry.id}': CustomMetadata(module.get_custom_metadata)}}) of cadenza.data.stable_audio_dataset"
            )
    return functions


def _find_folder(entry: DatasetEntry, config: Path) -> Path:
    paths = [Path(entry.path or ""), config.parent / (entry.path or "")]
    for path in paths:
        if path.exists():
            return path
    raise DataError(f"{config}: '{entry.id}' not found. Tried {paths[0].absolute()} and {paths[1].absolute()}")
