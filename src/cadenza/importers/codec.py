"""A codec alone: an EnCodec of transformers, or the compression model of AudioCraft."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cadenza.importers import encodec
from cadenza.importers.compression import Compression, compression_of
from cadenza.importers.licence import card_of
from cadenza.importers.model import Foreign
from cadenza.importers.weights import in_memory
from cadenza.system.card import Card
from cadenza.system.spec import SystemSpec
from cadenza.system.store import Stored


def look_transformers(folder: Path, config: Mapping[str, Any], *, name: str | None = None) -> Foreign:
    """The EnCodec in a folder of transformers."""
    codec = Compression(encodec.spec_of(config, source=str(folder / "config.json")), None, folder)
    return _foreign(folder, "transformers EnCodec", codec, name)


def look_audiocraft(folder: Path, *, name: str | None = None) -> Foreign:
    """The compression model that AudioCraft exported into a folder."""
    return _foreign(folder, "AudioCraft EnCodec", compression_of(folder, None), name)


def _foreign(folder: Path, layout: str, codec: Compression, name: str | None) -> Foreign:
    spec = SystemSpec.parse({"codec": codec.spec.to_dict()}, source=str(folder))
    card = card_of(folder, name=name, summary="Audio to codes and back: EnCodec, imported.")
    return Foreign(folder, layout, spec, card, partial(_read, codec, spec, card))


def _read(codec: Compression, spec: SystemSpec, card: Card) -> Stored:
    return Stored(spec, card, in_memory({f"codec.{name}": x for name, x in codec.read().items()}))
