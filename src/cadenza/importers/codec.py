"""A codec alone: an EnCodec of transformers, or the compression model of AudioCraft."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cadenza.importers import encodec
from cadenza.importers.compression import CompressionModel, load_compression_model
from cadenza.importers.licence import model_card_for
from cadenza.importers.model import ForeignModel
from cadenza.importers.weights import to_float32_copy
from cadenza.system.card import ModelCard
from cadenza.system.spec import SystemSpec
from cadenza.system.store import SavedSystem


def inspect_transformers_encodec(folder: Path, config: Mapping[str, Any], *, name: str | None = None) -> ForeignModel:
    """The EnCodec in a folder of transformers."""
    codec = CompressionModel(encodec.spec_from_transformers(config, source=str(folder / "config.json")), None, folder)
    return _foreign(folder, "transformers EnCodec", codec, name)


def inspect_audiocraft_encodec(folder: Path, *, name: str | None = None) -> ForeignModel:
    """The compression model that AudioCraft exported into a folder."""
    return _foreign(folder, "AudioCraft EnCodec", load_compression_model(folder, None), name)


def _foreign(folder: Path, layout: str, codec: CompressionModel, name: str | None) -> ForeignModel:
    spec = SystemSpec.parse({"codec": codec.spec.to_dict()}, source=str(folder))
    card = model_card_for(folder, name=name, summary="Audio to codes and back: EnCodec, imported.")
    return ForeignModel(folder, layout, spec, card, partial(_read, codec, spec, card))


def _read(codec: CompressionModel, spec: SystemSpec, card: ModelCard) -> SavedSystem:
    return SavedSystem(spec, card, to_float32_copy({f"codec.{name}": x for name, x in codec.read().items()}))
