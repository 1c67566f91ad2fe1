"""Separation of a mix into stems by Demucs (arXiv:2211.08553)."""

import shutil
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.core.hub import ModelSource
from cadenza.dsp.audio import Audio

_CLASSES = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")


class Separator:
    """A Demucs model by name, such as `htdemucs`, or folder; loaded on first use and shared by copies.

    The files are `NAME.yaml` and the safetensors files that it lists, as in the model's hub repository.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def __deepcopy__(self, memo: Any) -> "Separator":
        return self

    def __reduce__(self) -> Any:
        return Separator, (self.model,)

    @property
    def folder(self) -> Path | None:
        """Return the folder of the model, or None for a name."""
        path = Path(self.model).expanduser()
        return path if path.is_dir() else None

    @torch.no_grad()
    def separate(self, wave: Float[Tensor, "1 t"], sample_rate: int) -> dict[str, Float[Tensor, "1 t"]]:
        """Return each stem of a mono mix, at its level in the mix; deterministic."""
        net = self._loaded[0].to(wave.device)
        from demucs.apply import apply_model

        mix = Audio(wave[None].float(), sample_rate).resample(net.samplerate).to_channels(net.audio_channels).wave
        with torch.autocast(wave.device.type, enabled=False):
            parts = apply_model(net, mix, shifts=0, split=True)
        stems = Audio(parts[0], net.samplerate).to_channels(1).resample(sample_rate).wave[..., : wave.shape[-1]]
        missing = wave.shape[-1] - stems.shape[-1]
        return dict(zip(net.sources, torch.nn.functional.pad(stems, (0, missing)), strict=True))

    def cache_fingerprint(self) -> tuple[Any, dict[str, Tensor]]:
        """Return the metadata and the weights, which determine the stems."""
        network, metadata = self._loaded
        return metadata, network.state_dict()

    def save(self, folder: Path) -> None:
        """Copy the files to a new folder."""
        folder.mkdir(parents=True)
        for path in self._files():
            shutil.copyfile(path, folder / path.name)

    def _files(self) -> list[Path]:
        """Return the YAML file, and the files of its networks."""
        if folder := self.folder:
            lists, source = sorted(folder.glob("*.yaml")), ModelSource(self.model)
            if len(lists) != 1:
                raise CheckpointError(
                    f"'{self.model}' has {len(lists)} *.yaml files. Expected one that lists the networks; copy the folder again"
                )
            name = lists[0].name
        else:
            from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name

            if "/" in self.model:
                raise CheckpointError(
                    f"folder not found: '{self.model}'. Use the folder of a Demucs model, or a name such as htdemucs"
                )
            source, name = ModelSource(f"{DEFAULT_NAMESPACE}/{hf_repo_name(self.model)}"), f"{self.model}.yaml"
        listing = source.required_file(name, of="a Demucs")
        try:
            nets = list(yaml.safe_load(listing.read_text())["models"])
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{listing} does not list the networks of a Demucs model ({error!r}); copy it again"
            ) from None
        return [listing, *(source.required_file(f"{net}.safetensors", of="a Demucs") for net in nets)]

    @cached_property
    def _loaded(self) -> tuple[Any, list[Any]]:
        """Return the network, and the metadata of its files."""
        try:
            from demucs.apply import BagOfModels
            from demucs.hf import load_safetensors_model

            listing, *paths = self._files()
        except (ImportError, CheckpointError) as error:
            fix = ": pip install -e '.[stems]'" if isinstance(error, ImportError) else ""
            raise CheckpointError(
                f"separating a mix into stems needs Demucs, which is not available ({error}){fix}. "
                "Without it, pass the stems themselves, or set stems: null to use the whole mix"
            ) from None
        bag = yaml.safe_load(listing.read_text())
        options = bag.get("weights"), bag.get("segment")
        metadata = [version("demucs"), *options, *map(_read_metadata, paths)]
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            nets = [load_safetensors_model(path) for path in paths]
            return BagOfModels(nets, *options).eval().requires_grad_(False), metadata


def _read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file; CheckpointError unless it names a Demucs network (other classes could run code)."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a complete safetensors file ({error}); copy it again") from None
    if metadata.get("klass") not in _CLASSES or "structure" in metadata:
        raise CheckpointError(f"{path} has the class {metadata.get('klass')!r}. Expected one of {', '.join(_CLASSES)}")
    return metadata
