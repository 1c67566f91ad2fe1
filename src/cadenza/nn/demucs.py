"""Stems: what a separator of sources makes of a mix (Demucs, arXiv:2211.08553)."""

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

_NETS = ("demucs.htdemucs.HTDemucs", "demucs.hdemucs.HDemucs", "demucs.demucs.Demucs")


class Separator:
    """A Demucs by its name, such as `htdemucs`, or by the folder of its files, read when first needed; copies share it.

    The files are those of its repository in the hub: `NAME.yaml`, and the safetensors that this lists.
    """

    def __init__(self, model: str) -> None:
        self.model = model

    def __deepcopy__(self, memo: Any) -> "Separator":
        return self

    def __reduce__(self) -> Any:
        return Separator, (self.model,)

    @property
    def folder(self) -> Path | None:
        """The folder of its files; None where it is a name."""
        path = Path(self.model).expanduser()
        return path if path.is_dir() else None

    @property
    def sources(self) -> tuple[str, ...]:
        """The names of the stems that it tells apart."""
        return tuple(self._net.sources)

    @torch.no_grad()
    def separate(self, wave: Float[Tensor, "1 t"], sample_rate: int) -> dict[str, Float[Tensor, "1 t"]]:
        """Each stem of a mono mix, as loud as it is in there, without any chance."""
        net = self._net.to(wave.device)
        from demucs.apply import apply_model

        mix = Audio(wave[None].float(), sample_rate).resample(net.samplerate).to_channels(net.audio_channels).wave
        with torch.autocast(wave.device.type, enabled=False):
            parts = apply_model(net, mix, shifts=0, split=True)
        found = Audio(parts[0], net.samplerate).to_channels(1).resample(sample_rate).wave[..., : wave.shape[-1]]
        missing = wave.shape[-1] - found.shape[-1]
        return dict(zip(self.sources, torch.nn.functional.pad(found, (0, missing)), strict=True))

    def cache_fingerprint(self) -> tuple[Any, dict[str, Tensor]]:
        """All that the stems depend on: what its files say of its nets, and their weights."""
        return self._said, self._net.state_dict()

    def save(self, folder: Path) -> None:
        """Copies its files, where they came from a folder."""
        folder.mkdir(parents=True)
        for path in self._files():
            shutil.copyfile(path, folder / path.name)

    def _files(self) -> list[Path]:
        """The list of its nets first, then each of them."""
        if folder := self.folder:
            lists, source = sorted(folder.glob("*.yaml")), ModelSource(self.model)
            if len(lists) != 1:
                raise CheckpointError(
                    f"'{self.model}' has {len(lists)} files *.yaml, a Demucs has one that lists its nets; copy it"
                )
            name = lists[0].name
        else:
            from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name

            if "/" in self.model:
                raise CheckpointError(
                    f"there is no folder '{self.model}'; give the folder of a Demucs, or a name such as htdemucs"
                )
            source, name = ModelSource(f"{DEFAULT_NAMESPACE}/{hf_repo_name(self.model)}"), f"{self.model}.yaml"
        listed = source.required_file(name, of="a Demucs")
        try:
            nets = list(yaml.safe_load(listed.read_text())["models"])
        except (yaml.YAMLError, KeyError, TypeError) as error:
            raise CheckpointError(f"{listed} does not list the nets of a Demucs ({error!r}); copy it again") from None
        return [listed, *(source.required_file(f"{net}.safetensors", of="a Demucs") for net in nets)]

    @cached_property
    def _said(self) -> list[Any]:
        _ = self._net  # which says what is wrong with the files
        listed, *paths = self._files()
        bag = yaml.safe_load(listed.read_text())
        return [version("demucs"), bag.get("weights"), bag.get("segment"), *map(_check, paths)]

    @cached_property
    def _net(self) -> Any:
        try:
            from demucs.apply import BagOfModels
            from demucs.hf import load_safetensors_model

            listed, *paths = self._files()
        except (ImportError, CheckpointError) as error:
            mend = ": pip install 'cadenza[stems]'" if isinstance(error, ImportError) else ""
            raise CheckpointError(
                f"separating a mix into stems needs Demucs, which is not here ({error}){mend}. "
                "Without it, give the stems themselves, or a conditioner with stems: null, which hears the whole mix"
            ) from None
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            for path in paths:
                _check(path)
            bag = yaml.safe_load(listed.read_text())
            nets = [load_safetensors_model(path) for path in paths]
            return BagOfModels(nets, bag.get("weights"), bag.get("segment")).eval().requires_grad_(False)


def _check(path: Path) -> dict[str, str]:
    """What a file says of its net; CheckpointError unless that is one of Demucs, as others could be made to run code."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    if said.get("klass") not in _NETS or "structure" in said:
        raise CheckpointError(f"{path} says that it is a {said.get('klass')!r}, not a plain net of Demucs: {', '.join(_NETS)}")
    return said
