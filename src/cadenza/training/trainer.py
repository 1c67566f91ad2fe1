"""Trainer: build a system, a task and datasets from a config, and run the training loop."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cadenza.core.errors import TrainingError
from cadenza.data import sources
from cadenza.data.audio_dataset import AudioDataset, TorchDatasetAdapter
from cadenza.data.encoded_dataset import EncodedDataset, PreEncodedDataset, PreEncodedFolder
from cadenza.data.items import is_text_list
from cadenza.data.loader import Batch, BatchLoader, BatchSampler, fixed_batches
from cadenza.data.manifest import Manifest
from cadenza.system.feature_cache import FeatureCache, cache_dir
from cadenza.system.store import ModelCard
from cadenza.system.system import System
from cadenza.training import checkpoints
from cadenza.training.config import TrainingConfig, resolve_config
from cadenza.training.distributed import DistributedContext
from cadenza.training.loop import TrainingData, TrainingLoop, TrainingResult, validation_metrics

MAX_SAMPLE_SECONDS = 60  # of audio in the batch that samples are generated from


class Trainer:
    """Train a system on a folder of audio, a manifest, shards, an encoded store or a torch Dataset.

    `config` is a TrainingConfig, its path, a mapping, or a SystemSpec or System (whose weights are the start) with the
    fields of a config as keywords. `init_from` is another start: a System, or the folder of a saved one. `out` is the
    run's folder, with `log.jsonl`, `samples`, `checkpoints`, and `best` and `final`, which `cadenza.load` reads; an
    unfinished run there is continued.
    """

    def __init__(
        self, config: Any, data: Any, *, out: str | Path | None = None, validation: Any = None, data_rate: int | None = None,
        init_from: System | str | None = None, cpu: bool = False, overrides: Sequence[str] = (), **fields: Any,
    ) -> None:  # fmt: skip
        starts = [system for system in (config, init_from) if isinstance(system, System)]
        card = getattr(config, "card", None)
        if isinstance(init_from, str):
            fields["init_from"] = init_from
        self.config = resolve_config(config.spec if isinstance(config, System) else config, overrides, fields)
        self.folder = Path("runs") / self.config.name if out is None else Path(out)
        self.engine = DistributedContext(self.config.precision, cpu=cpu)
        self.system = System(self.config.system, card or ModelCard(name=self.config.name))
        if not isinstance(init_from, System) and self.config.init_from is not None:
            starts.append(System.load(self.config.init_from))
        self._pretrained = _load_weights(self.system, starts, self.config)
        self.task = self.config.task.build(self.system)
        _check_trained(self.system, self.task.optimized_modules().values(), self._pretrained)
        self._train_set, self._holdout = self._open_data(data, validation, data_rate)
        self.system.to(self.engine.device)
        if self.config.cache and cache_dir() is not None:
            self.system.cache = FeatureCache()

    def train(self) -> TrainingResult:
        """Train to the end, or until Ctrl-C or the time limit; the next call continues exactly."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrainingError(f"{self.folder}: cannot be created: {error.strerror}; choose another `out`") from None
        if not checkpoints.list_checkpoint_steps(self.folder / "checkpoints"):
            self._prepare_conditioners()
        loop = TrainingLoop(self.config, self.task, folder=self.folder, engine=self.engine, save=self.system.save)
        loop.resume()
        data = self._training_data(loop)
        result = loop.run(data)
        assert isinstance(data.batches, BatchLoader)
        if data.batches.report.broken:
            loop.ticker.print(str(data.batches.report))
        return result

    def validate(self) -> dict[str, float]:
        """Return the task's metrics on the holdout with the present weights; empty without a holdout."""
        for module in (*self.task.optimized_modules().values(), self.task.extra_state()):
            module.to(self.engine.device).eval()
        with torch.no_grad(), self.engine.autocast():
            return validation_metrics(self.task, self.engine, self._validation_batches())

    def metadata(self) -> list[Mapping[str, Any]]:
        """Return the metadata of every training clip, without its audio."""
        return list(self._train_set.metadata_items())

    def _prepare_conditioners(self) -> None:
        """Pass the metadata to conditioners without pretrained weights, which may build a vocabulary from it."""
        new = [name for name in self.system.conditioners if f"conditioners.{name}" not in self._pretrained]
        metadata = self.metadata() if new else []
        for name in new:
            values = (item.get(name) for item in metadata)
            alternatives = (v for value in values for v in (value if is_text_list(value) else [value]))  # type: ignore[union-attr]
            self.system.conditioners[name].prepare_training(alternatives)  # type: ignore[operator]

    def _training_data(self, loop: TrainingLoop) -> TrainingData:
        """Return the batches of this process, and the fixed batches for validation and samples."""
        config, engine, train_set, holdout = self.config, self.engine, self._train_set, self._holdout
        order = BatchSampler(len(train_set), config.batch, seed=config.seed, rank=engine.rank, world=engine.processes)
        prepare = self.system.conditioners.prepare
        loader = BatchLoader(train_set, order, workers=config.workers, prepare=prepare, on_broken_file=config.on_broken_file)
        validation, samples = self._validation_batches(), None
        if holdout is not None and len(holdout) and config.sample_items:
            count = max(1, min(config.sample_items, int(MAX_SAMPLE_SECONDS / config.seconds)))
            samples = fixed_batches(holdout, count, count=count, prepare=prepare)[0]
        total = sum(len(batch.metadata) for batch in validation)
        loop.ticker.print(f"{len(train_set)} training segments, {total} validation segments")
        return TrainingData(loader, validation, samples)

    def _validation_batches(self) -> list[Batch]:
        holdout, config = self._holdout, self.config
        if holdout is None or not len(holdout) or not config.validation_items:
            return []
        return fixed_batches(holdout, config.batch, count=config.validation_items, prepare=self.system.conditioners.prepare)

    def _open_data(self, data: Any, validation: Any, data_rate: int | None) -> tuple[Any, Any]:
        """Return the training set, and `validation` or a few clips held out by the hash of their ids."""
        train_set = self._open_dataset(data, data_rate)
        if validation is not None:
            holdout = self._open_dataset(validation, data_rate)
            holdout.fixed = True
            return train_set, holdout
        num_clips = len({train_set.item_id(index) for index in range(len(train_set))})
        count = min(self.config.validation_items, num_clips // 4)
        return train_set.split(count) if count else (train_set, None)

    def _open_dataset(self, data: Any, data_rate: int | None) -> Any:
        config, codec = self.config, self.system.spec.codec
        if isinstance(data, AudioDataset | TorchDatasetAdapter | EncodedDataset | PreEncodedDataset):
            return data
        if isinstance(data, str | Path | Manifest | PreEncodedFolder):
            if "codes" not in self.task.input_kinds and sources.is_encoded(data):
                raise TrainingError(f"{data}: contains encoded frames, but this task trains on audio; use a folder of audio")
            options = {"seconds": config.seconds, "seed": config.seed, "ids": self.system.conditioners.input_ids()}
            dataset, report = sources.open_dataset(data, self.system.codec, **options, to_item=config.music)
            if report.broken and config.on_broken_file == "raise":
                raise TrainingError(f"the data: {report}; fix or remove these files, or set on_broken_file: skip")
            if report.broken and self.engine.main:
                print(f"the data: {report}", file=sys.stderr)
            return dataset
        return TorchDatasetAdapter(
            data, seconds=config.seconds, sample_rate=codec.sample_rate, channels=codec.channels, data_rate=data_rate,
            seed=config.seed,
        )  # fmt: skip


def _parts(system: System) -> dict[str, nn.Module]:
    """Return the parts with weights, by name."""
    parts: dict[str, nn.Module] = {"codec": system.codec}
    parts |= {f"conditioners.{name}": part for name, part in system.conditioners.items()}
    return parts if system.generator is None else {**parts, "generator": system.generator}


def _load_weights(system: System, starts: Sequence[System], config: TrainingConfig) -> set[str]:
    """Copy weights of parts with equal specs from other systems; return the names of these parts."""
    loaded: set[str] = set()
    for start in starts:
        start_parts = _parts(start)
        for name, part in _parts(system).items():
            if name in start_parts and start_parts[name].spec == part.spec:  # type: ignore[union-attr]
                part.load_state_dict(start_parts[name].state_dict())
                loaded.add(name)
        if loaded and system.card.license == ModelCard().license:  # the license of the weights applies to trained ones
            system.card = ModelCard(name=config.name, license=start.card.license, notice=start.card.notice)
    if starts and not loaded:
        raise TrainingError(f"init_from: no part of {config.init_from or 'it'} has the same spec as a part of this system")
    return loaded


def _check_trained(system: System, trained: Any, pretrained: set[str]) -> None:
    """Raise TrainingError for a part that is frozen and has random weights."""
    trained_ids = {id(p) for module in trained for p in module.parameters()}
    for name, part in _parts(system).items():
        parameters = list(part.parameters())
        if name not in pretrained and parameters and not any(id(p) in trained_ids for p in parameters):
            raise TrainingError(
                f"'{name}' would stay untrained: this task does not train it, and it has no pretrained weights. "
                "Set init_from to a saved system that has it, or remove it from the system"
            )
