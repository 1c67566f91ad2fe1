"""Control settings (ablations): the same held-out clips requested with each control alone, with all and with all but one.

If a system extracts values from prompts, one more setting measures its text conditioner without that extraction.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError, RequestError
from cadenza.core.spec import did_you_mean
from cadenza.data.items import select_holdout
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.data.sources import load_manifest
from cadenza.dsp.audio import Audio, load_audio
from cadenza.evaluation.estimator_net import dominant_pitch_class, extract_features
from cadenza.evaluation.labels import labelled_clips
from cadenza.evaluation.targets import (
    AttributeTargets,
    handwritten_prompts,
    targets_from_caption,
    targets_from_handwritten,
    targets_from_values,
)

TEXT, ALL_BUT, HANDWRITTEN = "prompt", "all-but-", "handwritten"
VALUES: dict[str, Callable[[Mapping[str, Any]], Any]] = {  # from a clip's labels to the value of a control, None if unknown
    "tempo": lambda labels: labels.get("tempo"),
    "key": lambda labels: labels.get("key"),
    "chords": lambda labels: [tuple(span) for span in labels.get("chords") or ()] or None,
    "melody": lambda labels: [tuple(note[:3]) for note in labels.get("notes") or () if note[4] == "melody"] or None,
}
HANDWRITTEN_SECONDS = 10.0


@dataclass(frozen=True)
class ControlSetting:
    """Items to generate with their targets and lengths in seconds; `controls` are the ids of the controls in the items."""

    name: str
    items: list[dict[str, Any]]
    targets: list[AttributeTargets]
    seconds: list[float]
    extracts_values: bool = True  # whether the system may extract values from the texts
    controls: frozenset[str] = frozenset()
    references: bool = True  # whether clip i has reference i


@dataclass(frozen=True)
class Reference:
    """A held-out clip with the labels of its sidecar."""

    clip: ManifestClip
    sidecar: dict[str, Any] = field(hash=False)

    def load_audio(self, codec: Codec) -> Audio:
        """Load the clip at the sample rate and with the channels of a codec."""
        return load_audio(self.clip.audio).resample(codec.spec.sample_rate).to_channels(codec.spec.channels)

    @cached_property
    def chroma(self) -> np.ndarray:
        """Loudest pitch class at each estimator frame, 12 for none."""
        return dominant_pitch_class(extract_features(load_audio(self.clip.audio)).pitch[0]).numpy()


def sample_references(held_out: str | Path | Manifest, count: int) -> list[Reference]:
    """Return `count` labelled clips, or all if there are fewer; the choice does not depend on their order.

    Raises DataError for fewer than two labelled clips.
    """
    manifest = held_out if isinstance(held_out, Manifest) else load_manifest(held_out)[0]
    labelled = sorted(labelled_clips(manifest), key=lambda pair: pair[0].id)
    ids = select_holdout((clip.id for clip, _ in labelled), count)
    chosen = [Reference(clip, labels) for clip, labels in labelled if clip.id in ids]
    if len(chosen) < 2:
        raise DataError(
            f"{manifest.folder}: {len(chosen)} of {len(labelled)} labelled clips selected. Expected at least 2. Add clips."
        )
    return chosen


@dataclass(frozen=True)
class EvaluationSet:
    """Reference clips, families of the estimators, controls and maximum seconds of a system."""

    references: Sequence[Reference]
    families: Sequence[str]
    controls: Sequence[str]
    max_seconds: float
    extracts_prompt_values: bool = False

    @cached_property
    def measured(self) -> list[str]:
        """Controls that can be measured: the prompt, and those with a value in the labels of some clip."""
        values = [name for name in VALUES if name in self.controls and any(VALUES[name](r.sidecar) for r in self.references)]
        return [TEXT, *values] if TEXT in self.controls else values

    @cached_property
    def seconds(self) -> list[float]:
        return [min(float(reference.sidecar["seconds"]), self.max_seconds) for reference in self.references]

    @cached_property
    def captions(self) -> list[tuple[str, AttributeTargets]]:
        """One caption per clip with its targets: caption `i % n` of clip i."""
        captions = []
        for i, reference in enumerate(self.references):
            texts, mentions = reference.sidecar["prompt"], reference.sidecar["prompt_mentions"]
            text, mentioned = texts[i % len(texts)], mentions[i % len(texts)]
            captions.append((text, targets_from_caption(text, mentioned, reference.sidecar, self.families)))
        return captions

    def setting(self, name: str, controls: Collection[str], *, extracts_values: bool = True) -> ControlSetting:
        """Return the setting in which every reference is requested with some controls."""
        items, all_targets = [], []
        for i, (reference, seconds) in enumerate(zip(self.references, self.seconds, strict=True)):
            values = {control: VALUES[control](reference.sidecar) for control in controls if control != TEXT}
            chroma = reference.chroma if "melody" in controls else None
            targets = targets_from_values(reference.sidecar, values, seconds=seconds, chroma=chroma)
            item = {control: value for control, value in values.items() if value is not None}
            if TEXT in controls:  # targets of values replace those of the text
                text, text_targets = self.captions[i]
                item = {TEXT: text, **item}
                targets = replace(text_targets, **{name: x for name, x in vars(targets).items() if x is not None})
            items.append(item)
            all_targets.append(replace(targets, seconds=seconds))
        return ControlSetting(name, items, all_targets, self.seconds, extracts_values, frozenset(controls))

    def handwritten_setting(self) -> ControlSetting:
        """Return the setting of sixty prompts without references."""
        entries = handwritten_prompts()
        targets = [targets_from_handwritten(entry, self.families) for entry in entries]
        seconds = [min(HANDWRITTEN_SECONDS, self.max_seconds)] * len(entries)
        prompts = [{TEXT: entry["prompt"]} for entry in entries]
        return ControlSetting(HANDWRITTEN, prompts, targets, seconds, controls=frozenset({TEXT}), references=False)


def settings(dataset: EvaluationSet, names: Sequence[str] = ()) -> list[ControlSetting]:
    """Return the settings of these names and groups ('alone', 'together'), all by default, in a fixed order.

    With text and values together, no value is extracted from the text, so that their effects stay apart.
    Raises RequestError for a name that does not exist, or if no control can be measured.
    """
    controls = dataset.measured
    if not controls:
        raise RequestError(
            f"The controls of this system ({', '.join(dataset.controls) or 'none'}) cannot be measured. "
            f"Expected {TEXT}, {' or '.join(VALUES)}, with values in the labels of the clips."
        )
    extracts = dataset.extracts_prompt_values
    available: dict[str, tuple[Sequence[str], bool]] = {"nothing": ((), True)}
    available |= {display_name(control): ([control], True) for control in controls}
    if TEXT in controls and extracts:
        available["text-without-values"] = [TEXT], False
    if TEXT in controls:
        available[HANDWRITTEN] = [TEXT], True
    if len(controls) > 2:  # of two controls, all but one is the other alone
        others = {control: [other for other in controls if other != control] for control in controls}
        available |= {ALL_BUT + display_name(control): (rest, not extracts) for control, rest in others.items()}
    if len(controls) > 1:
        available["all"] = controls, not extracts
    groups = {
        "alone": ["nothing", *map(display_name, controls)],
        "together": [name for name in available if name.startswith("all")],
    }
    for name in names:
        if name not in available and name not in groups:
            raise RequestError(f"Setting '{name}' not found.{did_you_mean(name, [*available, *groups])}")
    chosen = {member for name in names for member in groups.get(name, [name])}
    return [
        dataset.handwritten_setting() if name == HANDWRITTEN else dataset.setting(name, given, extracts_values=extract)
        for name, (given, extract) in available.items()
        if not names or name in chosen
    ]


def setting_without(setting: ControlSetting, others: Sequence[ControlSetting], control: str) -> ControlSetting | None:
    """Return the setting with the same controls except this one, or None if `others` does not contain it."""
    if not setting.references or control not in setting.controls:
        return None
    matches = [other for other in others if other.references and other.controls == setting.controls - {control}]
    return max(matches, key=lambda other: other.extracts_values == setting.extracts_values, default=None)


def display_name(control: str) -> str:
    """Return a control's name in the names of settings."""
    return "text" if control == TEXT else control
