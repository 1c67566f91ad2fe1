"""Trainer: a config and data in, a trained system in a folder out."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cadenza.core.errors import TrainingError
from cadenza.data import sources as sources
from cadenza.data.audio_dataset import AudioDataset, ItemDataset, TorchDatasetAdapter
from cadenza.data.encoded_dataset import EncodedDataset, PreEncodedDataset, PreEncodedFolder
from cadenza.data.items import ReadReport, SampleIndex
from cadenza.data.loader import Batch, BatchLoader, BatchSampler, fixed_batches
from cadenza.data.manifest import Manifest
from cadenza.system.feature_cache import FeatureCache, cache_dir
from cadenza.system.store import ModelCard
from cadenza.system.system import System
from cadenza.training import checkpoints
from cadenza.training.config import TrainingConfig, resolve_config
from cadenza.training.distributed import DistributedContext
from cadenza.training.loop import TrainingData, TrainingLoop, TrainingResult

SAMPLED_SECONDS = 60  # of sound at most in the batch that samples are made from


class Trainer:
    """Trains a system on a folder of audio, a manifest, shards, an encoded store or a torch Dataset.

    `what` is a TrainingConfig, the path of one, a mapping, or with the fields of a config as keywords a SystemSpec or
    System, whose weights are then the start; `init_from` is another such System, or as in a config the folder of one that
    Cadenza saved. `out` is the run's folder; an unfinished run there is continued. In it
    are `log.jsonl`, `samples`, `checkpoints`, and `best` and `final`, which `cadenza.load` reads.
    """

    def __init__(
        self, what: Any, data: Any, *, out: str | Path | None = None, validation: Any = None, data_rate: int | None = None,
        init_from: System | str | None = None, cpu: bool = False, overrides: Sequence[str] = (), **fields: Any,
    ) -> None:  # fmt: skip
        named = {"init_from": init_from} if isinstance(init_from, str) else {}
        self.config = resolve_config(what.spec if isinstance(what, System) else what, overrides, {**fields, **named})
        self.folder = Path("runs") / self.config.name if out is None else Path(out)
        self.engine = DistributedContext(self.config.precision, cpu=cpu)
        self.system = System(self.config.system, getattr(what, "card", None) or ModelCard(name=self.config.name))
        if not isinstance(init_from, System) and self.config.init_from is not None:
            init_from = System.load(self.config.init_from)
        self._given = _given(self.system, [one for one in (what, init_from) if isinstance(one, System)], self.config)
        self.task = self.config.task.build(self.system)
        _demand(self.system, self.task.optimized_modules().values(), self._given)
        self._train, self._held = self._data(data, validation, data_rate)
        self.system.to(self.engine.device)
        if self.config.cache and cache_dir() is not None:
            self.system.cache = FeatureCache()

    def train(self) -> TrainingResult:
        """Trains to the end, or until Ctrl-C or the time is up, which the next call continues exactly."""
        config, engine = self.config, self.engine
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be made: {error.strerror}; choose another place with out=") from None
        if not checkpoints.list_checkpoint_steps(self.folder / "checkpoints"):
            self._fit()
        loop = TrainingLoop(config, self.task, folder=self.folder, engine=engine, save=self.system.save)
        loop.resume()
        material = self._material(loop)
        outcome = loop.run(material)
        loader = material.batches
        assert isinstance(loader, BatchLoader)
        if loader.report.broken:
            loop.ticker.print(str(loader.report))
        return outcome

    def validate(self) -> dict[str, float]:
        """What the task says of the held-out items under the weights there are now; nothing where nothing is held out."""
        batches = self._judging()
        totals: dict[str, float] = {}
        for module in (*self.task.optimized_modules().values(), self.task.extra_state()):
            module.to(self.engine.device).eval()
        with torch.no_grad(), self.engine.autocast():
            for batch in batches:
                for name, value in self.task.validate(self.engine.to_device(batch)).items():
                    totals[name] = totals.get(name, 0.0) + float(value) / len(batches)
        return totals | {name: float(value) for name, value in self.task.epoch_metrics().items()}

    def metadata(self) -> list[Mapping[str, Any]]:
        """What is known of every clip to learn from, without its audio."""
        return _metadata(self._train)

    def _fit(self) -> None:
        """Shows the conditioners that have no weights yet what they must know before the first step, such as a vocabulary."""
        new = [name for name in self.system.conditioners if f"conditioners.{name}" not in self._given]
        metadata = _metadata(self._train) if new else []
        for name in new:
            self.system.conditioners[name].prepare_training(value for item in metadata for value in _values(item.get(name)))  # type: ignore[operator]

    def _material(self, loop: TrainingLoop) -> TrainingData:
        """The batches of this process, and those that are the same every time."""
        config, engine, held = self.config, self.engine, self._held
        order = BatchSampler(len(self._train), config.batch, seed=config.seed, rank=engine.rank, world=engine.processes)
        prepare = self.system.conditioners.prepare
        loader = BatchLoader(self._train, order, workers=config.workers, prepare=prepare, broken=config.on_broken_file)
        validation, samples = self._judging(), None
        if held is not None and len(held) and config.sample_items:
            heard = max(1, min(config.sample_items, int(SAMPLED_SECONDS / config.seconds)))
            samples = fixed_batches(held, heard, count=heard, prepare=prepare)[0]
        count = sum(len(batch.metadata) for batch in validation)
        loop.ticker.print(f"{len(self._train)} segments to learn from, {count} held out to validate on")
        return TrainingData(loader, validation, samples)

    def _judging(self) -> list[Batch]:
        """The batches that validation is on."""
        held, config = self._held, self.config
        if held is None or not len(held) or not config.validation_items:
            return []
        return fixed_batches(held, config.batch, count=config.validation_items, prepare=self.system.conditioners.prepare)

    def _data(self, data: Any, validation: Any, data_rate: int | None) -> tuple[ItemDataset, ItemDataset | None]:
        """What is learned from, and what is held out: `validation`, or a few clips chosen by the hash of their ids."""
        training = self._dataset(data, data_rate)
        if validation is not None:
            held = self._dataset(validation, data_rate)
            held.fixed = True
            return training, held
        ids = {training.item_id(index) for index in range(len(training))}
        count = min(self.config.validation_items, len(ids) // 4)
        return training.split(count) if count else (training, None)

    def _dataset(self, data: Any, data_rate: int | None) -> Any:
        """The data set of items that a user's data is."""
        config, codec = self.config, self.system.spec.codec
        if isinstance(data, AudioDataset | TorchDatasetAdapter | EncodedDataset | PreEncodedDataset):
            return data
        if isinstance(data, str | Path | Manifest | PreEncodedFolder):
            if "codes" not in self.task.input_kinds and sources.is_encoded(data):
                raise TrainingError(f"{data}: a store of encoded frames, but this task learns from audio; give a folder of it")
            asked = {"seconds": config.seconds, "seed": config.seed, "ids": self.system.conditioners.input_ids()}
            found, report = sources.open_dataset(data, self.system.codec, **asked, to_item=config.music)
            self._report(report)
            return found
        return TorchDatasetAdapter(
            data, seconds=config.seconds, sample_rate=codec.sample_rate, channels=codec.channels, data_rate=data_rate,
            seed=config.seed,
        )  # fmt: skip

    def _report(self, report: ReadReport) -> None:
        if report.broken and self.config.on_broken_file == "raise":
            raise TrainingError(f"the data: {report}; mend or remove these files, or set broken: skip")
        if report.broken and self.engine.main:
            print(f"the data: {report}", file=sys.stderr)


def _parts(system: System) -> dict[str, nn.Module]:
    """The parts that can have weights of their own, by where they are."""
    parts: dict[str, nn.Module] = {"codec": system.codec}
    parts |= {f"conditioners.{name}": part for name, part in system.conditioners.items()}
    return parts if system.generator is None else {**parts, "generator": system.generator}


def _given(system: System, sources: Sequence[System], config: TrainingConfig) -> set[str]:
    """Gives the system's parts the weights of where training starts; which parts those are."""
    given: set[str] = set()
    for source in sources:
        theirs = _parts(source)
        for name, part in _parts(system).items():
            if name in theirs and theirs[name].spec == part.spec:  # type: ignore[union-attr]
                part.load_state_dict(theirs[name].state_dict())
                given.add(name)
        if given and system.card.license == ModelCard().license:  # what was trained on their weights is under their licence
            system.card = ModelCard(name=config.name, license=source.card.license, notice=source.card.notice)
    if sources and not given:
        raise TrainingError(f"init_from: no part of {config.init_from or 'it'} has the same spec as a part of this system")
    return given


def _demand(system: System, learning: Any, given: set[str]) -> None:
    """TrainingError for a part that neither learns nor was given weights: it would be noise for ever."""
    learns = {id(p) for module in learning for p in module.parameters()}
    for name, part in _parts(system).items():
        own = list(part.parameters())
        if name not in given and own and not any(id(p) in learns for p in own):
            raise TrainingError(
                f"'{name}' would stay untrained: this task does not train it, and no weights were given; "
                "name a saved system that has it (init_from: FOLDER), or leave it out of the system"
            )


def _metadata(dataset: Any) -> list[Mapping[str, Any]]:
    """What is known of every clip, without reading audio where that can be."""
    if isinstance(dataset, AudioDataset | PreEncodedDataset):
        return list(dataset.metadata_items())
    if isinstance(dataset, EncodedDataset):
        return [dataset.store.metadata(clip) for clip in sorted({clip for clip, _ in dataset.places})]
    return [{key: value for key, value in dataset[SampleIndex(i)].items() if key != "audio"} for i in range(len(dataset))]


def _values(value: Any) -> Sequence[Any]:
    """The values that draws of a piece of metadata can give: each of a list of texts."""
    return value if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value) else [value]
