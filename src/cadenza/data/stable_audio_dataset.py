"""Dataset configs of stable-audio-tools: `audio_dir`, local WebDataset and `pre_encoded` folders, read as they mean it.

A `custom_metadata_module` is code named by a file. It is never run: who trusts it passes its function, by the id of
the data set, as `to_item={"my_audio": custom_metadata(module.get_custom_metadata)}`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from cadenza.core.errors import DataError, SpecError
from cadenza.core.spec import Spec
from cadenza.data import webdataset
from cadenza.data.encoded_dataset import PreEncodedClip, PreEncodedFolder, scan_pre_encoded
from cadenza.data.items import Item, ReadReport, SegmentInfo, ToItem
from cadenza.data.manifest import Manifest, scan_folder
from cadenza.dsp.audio import Audio

ToItems = ToItem | Mapping[str, ToItem] | None  # one for all data sets, or one by the id of each


class DatasetEntry(Spec):
    """One data set of a config."""

    id: str = Field(min_length=1)
    path: str | None = None
    s3_path: str | None = None
    profile: str | None = None
    custom_metadata_module: str | None = None
    latent_crop_length: int | None = Field(None, ge=1)  # where their guide puts it

    @model_validator(mode="after")
    def _local(self) -> "DatasetEntry":
        if self.s3_path is not None or self.path is None or self.path.startswith(("s3://", "pipe:", "http:", "https:")):
            raise ValueError(f"'{self.id}' is not on this machine; fetch it, and give the folder as 'path'")
        return self


class DatasetConfig(Spec):
    """A whole config, with what has no effect here and what has an effect that is not offered."""

    dataset_type: Literal["audio_dir", "wds", "s3", "pre_encoded"]
    datasets: tuple[DatasetEntry, ...] = Field(min_length=1)
    random_crop: bool | None = None
    latent_crop_length: int | None = Field(None, ge=1)
    min_length_sec: float | None = Field(None, ge=0)
    max_length_sec: float | None = Field(None, gt=0)
    latent_extension: str = "npy"
    pre_encoded: bool = False
    remove_silence: bool = False
    volume_norm: bool = False
    silence_threshold: Any = None  # of remove_silence
    max_silence_duration: Any = None  # of remove_silence
    volume_norm_param: Any = None  # of volume_norm
    drop_last: bool = True  # batches are always full here
    epoch_steps: int | None = None  # the number of steps is the training config's
    resampled_shards: bool = True  # shuffling is over all shards here

    @field_validator("remove_silence", "volume_norm")
    @classmethod
    def _unchanged(cls, value: bool) -> bool:
        if value:
            raise ValueError("audio is used as it is; treat the files beforehand, and set this to false")
        return value

    @model_validator(mode="after")
    def _fits(self) -> "DatasetConfig":
        if self.latent_extension.removeprefix(".") != "npy":
            raise ValueError(f"latent_extension '{self.latent_extension}' is not known; there is: npy")
        if self.pre_encoded:
            raise ValueError(
                "encoded clips are read from folders and not from shards; unpack them, with dataset_type pre_encoded"
            )
        names = [entry.id for entry in self.datasets]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two data sets have the id '{twice[0]}'; rename one")
        return self


def load_dataset_config(path: str | Path, *, to_item: ToItems = None) -> tuple[Manifest | PreEncodedFolder, ReadReport]:
    """The clips that a config names, and what is broken among them; relative paths start from the current folder.

    A path that is not there is looked for beside the config too.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from None
    try:
        config = DatasetConfig.parse(data, source=str(path))
    except SpecError as error:
        raise DataError(str(error)) from None
    functions = _functions(config, to_item, path)
    roots = {entry.id: _root(entry, path) for entry in config.datasets}
    chosen = PerDatasetTransform(functions) if functions else None
    if config.dataset_type == "pre_encoded":
        clips = [
            clip
            for name, root in roots.items()
            for clip in scan_pre_encoded(root, prefix=f"{name}/").clips
            if _long(clip, config)
        ]
        if not clips:
            raise DataError(f"{path}: no clip is of a length from min_length_sec to max_length_sec; widen them")
        lengths = {config.latent_crop_length, *(entry.latent_crop_length for entry in config.datasets)} - {None}
        if len(lengths) > 1:
            raise DataError(f"{path}: latent_crop_length is said differently in several places; say it once")
        return PreEncodedFolder(clips, chosen, bool(config.random_crop), next(iter(lengths), None)), ReadReport(read=len(clips))
    found, report = [], ReadReport()
    for name, root in roots.items():
        manifest, there = scan_folder(root) if config.dataset_type == "audio_dir" else webdataset.load_shards(_shards(root))
        found += [replace(clip, id=f"{name}/{clip.id}") for clip in manifest.clips]
        report.broken |= {f"{name}/{broken}": reason for broken, reason in there.broken.items()}
    report.read = len(found)
    return Manifest(path.parent, found, chosen, config.random_crop is not False), report


def dataset_type(path: str | Path) -> str | None:
    """The `dataset_type` that a JSON file says, or None where it is no such config."""
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path.suffix == ".json" else None
    except (OSError, ValueError):
        return None
    return str(data["dataset_type"]) if isinstance(data, dict) and "dataset_type" in data else None


@dataclass(frozen=True)
class PerDatasetTransform:
    """The function to items of the data set that a clip is from, whose id its own begins with."""

    functions: Mapping[str, ToItem]

    def __call__(self, metadata: dict[str, Any], segment: SegmentInfo) -> Item | None:
        names = [name for name in self.functions if segment.id.startswith(f"{name}/")]
        return self.functions[max(names, key=len)](metadata, segment) if names else metadata


@dataclass(frozen=True)
class CustomMetadata:  # noqa: N801  # used as a function
    """A `get_custom_metadata(info, audio)` of stable-audio-tools as a `to_item`, for who trusts it.

    `__reject__` rejects the segment and `__audio__` adds sounds; `audio` [c, t] is the segment's, read for it.
    """

    function: Callable[[dict[str, Any], Any], Mapping[str, Any]]

    def __call__(self, metadata: dict[str, Any], segment: SegmentInfo) -> Item | None:
        audio = segment.audio
        times = {"seconds_start": int(segment.start), "seconds_total": -int(-segment.total // 1)}
        info = {**metadata, **times, "path": segment.source, "relpath": segment.id.partition("/")[2]}
        info["sample_rate"] = audio.sample_rate
        made = dict(self.function(info, audio.wave[0]))
        if made.pop("__reject__", False):
            return None
        sounds = {name: Audio(wave[None], audio.sample_rate) for name, wave in made.pop("__audio__", {}).items()}
        if unknown := [name for name in made if name.startswith("__")]:
            raise DataError(f"{segment.source}: its metadata has '{unknown[0]}', which is not known; give plain values")
        return {**metadata, **made, **sounds}


def _functions(config: DatasetConfig, to_item: ToItems, path: Path) -> dict[str, ToItem]:
    """The function of each data set that has one; DataError for a module that nobody vouches for."""
    names = [entry.id for entry in config.datasets]
    functions = {} if to_item is None else dict(to_item) if isinstance(to_item, Mapping) else dict.fromkeys(names, to_item)
    if unknown := sorted(set(functions) - set(names)):
        raise DataError(f"{path}: to_item names '{unknown[0]}', but there is no such data set; there are: {', '.join(names)}")
    for entry in config.datasets:
        if entry.custom_metadata_module is not None and entry.id not in functions:
            raise DataError(
                f"{path}: '{entry.id}' names code to run, {entry.custom_metadata_module}, and code named by a file is not run. "
                "If you trust it, import it yourself and pass its function: cadenza.data.stable_audio_dataset.read(config, "
                f"to_item={{'{entry.id}': custom_metadata(module.get_custom_metadata)}}), then train on what that gives"
            )
    return functions


def _root(entry: DatasetEntry, config: Path) -> Path:
    places = [Path(entry.path or ""), config.parent / (entry.path or "")]
    for place in places:
        if place.exists():
            return place
    raise DataError(f"{config}: '{entry.id}' is not there; looked for {places[0].absolute()} and {places[1].absolute()}")


def _shards(root: Path) -> list[Path]:
    found = webdataset.list_shards(root)
    if not found:
        raise DataError(f"{root}: no .tar file in it; give a folder of shards, or dataset_type audio_dir for loose files")
    return found


def _long(clip: PreEncodedClip, config: DatasetConfig) -> bool:
    if clip.total is None:
        return True
    return (config.min_length_sec or 0) <= clip.total <= (config.max_length_sec or clip.total)
