"""The codec beside a language model of AudioCraft: its own package, or a pointer to a released EnCodec."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cadenza.codecs.base import CodecSpec
from cadenza.codecs.encodec import EncodecSpec
from cadenza.core.errors import CheckpointError
from cadenza.importers import encodec, hub
from cadenza.importers.package import CODEC, AudiocraftPackage, load_package
from cadenza.importers.weights import read_folder


@dataclass(frozen=True)
class CompressionModel:
    """A codec understood from its config."""

    spec: EncodecSpec
    package: AudiocraftPackage | None  # AudioCraft's own
    folder: Path | None  # or transformers'

    def read(self) -> dict[str, Tensor]:
        """Its weights by our names."""
        if self.package is not None:
            return encodec.weights_from_audiocraft(self.package.weights, self.spec, source=str(self.package.path))
        assert self.folder is not None
        return encodec.weights_from_transformers(read_folder(self.folder), self.spec, source=str(self.folder))


def load_compression_model(folder: Path, named: object) -> CompressionModel:
    """The codec of the model in `folder`; `named` is how the language model's config calls it."""
    path = folder / CODEC
    if not path.exists() and not str(named).startswith("//pretrained/"):
        raise CheckpointError(
            f"{folder} holds no {CODEC}, and its config names the codec '{named}', which is a file of whoever trained it; "
            f"copy {CODEC} from where the model came from"
        )
    held = load_package(path) if path.exists() else None
    if held is not None and held.pretrained is None:
        return CompressionModel(encodec.spec_from_audiocraft(held.config, source=held.config.source), held, None)
    name = (str(named) if held is None or held.pretrained is None else held.pretrained).removeprefix("//pretrained/")
    if name.startswith("dac_"):
        raise CheckpointError(
            f"{folder}: its codec is '{name}' (DAC), which this release cannot load yet; use an EnCodec model"
        )
    place = _place(folder, name)
    config = hub.read_config(place)
    if config.get("model_type") != "encodec":
        raise CheckpointError(
            f"{place}: the codec '{name}' is of type {config.get('model_type')!r}; only 'encodec' can be loaded"
        )
    return CompressionModel(encodec.spec_from_transformers(config, source=str(place / "config.json")), None, place)


def keep_codebooks(weights: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """A codec's weights without the codebooks from `levels` on, which the language model does not write."""
    cut = {f"quantizer.levels.{k}." for k in range(levels)}
    return {name: x for name, x in weights.items() if not name.startswith("quantizer.levels.") or name.startswith(tuple(cut))}


def _place(folder: Path, name: str) -> Path:
    """Where a released codec lies: beside the model, at the path that its name is, or in the hub's cache."""
    for place in (folder / name, folder / name.rpartition("/")[2], Path(name)):
        if (place / "config.json").exists():
            return place
    return hub.download_snapshot(name, of=f"the codec of {folder}")


def inner_encodec(codec: CodecSpec) -> tuple[EncodecSpec, str]:
    """The EnCodec that a system's codec is, or that it has for each side, and how its weights' names begin in the system."""
    inner = getattr(codec, "codec", codec)
    assert isinstance(inner, EncodecSpec), "every codec that is imported is an EnCodec"
    return inner, "codec." if inner is codec else "codec.codec."
