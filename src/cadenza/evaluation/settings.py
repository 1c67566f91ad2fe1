"""Settings: the same held-out clips asked for with nothing, with each control alone, with all of them, and with all but one.

A system that reads values in its texts is also asked in text without doing so: what its text conditioner alone is worth.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from cadenza.core.errors import DataError, RequestError
from cadenza.core.spec import did_you_mean
from cadenza.data.items import select_holdout
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp.audio import load_audio
from cadenza.evaluation.estimator_net import dominant_pitch_class, extract_features
from cadenza.evaluation.labels import labelled_clips
from cadenza.evaluation.targets import (
    AttributeTargets,
    handwritten_prompts,
    targets_from_caption,
    targets_from_handwritten,
    targets_from_values,
)

TEXT, BUT = "prompt", "all-but-"
VALUES: dict[str, Callable[[Mapping[str, Any]], Any]] = {  # what of a clip's truth is given under which id, None if unknown
    "tempo": lambda truth: truth.get("tempo"),
    "key": lambda truth: truth.get("key"),
    "chords": lambda truth: [tuple(span) for span in truth.get("chords") or ()] or None,
    "melody": lambda truth: [tuple(note[:3]) for note in truth.get("notes") or () if note[4] == "melody"] or None,
}
HAND_SECONDS = 10.0


@dataclass(frozen=True)
class ControlSetting:
    """Items to generate, with what each asks for, and how long it is to be; `given` are the controls that are used."""

    name: str
    items: list[dict[str, Any]]
    wishes: list[AttributeTargets]
    seconds: list[float]
    reads: bool = True  # whether the system may read values in the texts
    given: frozenset[str] = frozenset()
    references: bool = True  # whether clip i answers to reference i


@dataclass(frozen=True)
class Reference:
    """A held-out clip with its truth."""

    clip: ManifestClip
    truth: dict[str, Any] = field(hash=False)

    @cached_property
    def chroma(self) -> np.ndarray:
        """The loudest pitch class at each of the estimators' frames."""
        return dominant_pitch_class(extract_features(load_audio(self.clip.audio)).pitch[0]).numpy()


def sample_references(manifest: Manifest, count: int) -> list[Reference]:
    """`count` clips of a manifest, or all if there are fewer, the same ones however the manifest is ordered."""
    found = sorted(labelled_clips(manifest), key=lambda pair: pair[0].id)
    out = select_holdout((clip.id for clip, _ in found), count)
    chosen = [Reference(clip, truth) for clip, truth in found if clip.id in out]
    if len(chosen) < 2:
        raise DataError(f"{manifest.folder}: {len(chosen)} of its {len(found)} clips to evaluate on; at least 2 are needed")
    return chosen


@dataclass(frozen=True)
class EvaluationSet:
    """What a system may be asked: clips, the families that the estimators know, its controls, its longest clip."""

    references: Sequence[Reference]
    families: Sequence[str]
    controls: Sequence[str]
    longest: float
    extracts_prompt_values: bool = False

    @cached_property
    def measured(self) -> list[str]:
        """The controls whose obedience can be measured: those of which some clip's truth says something."""
        values = [name for name in VALUES if name in self.controls and any(VALUES[name](r.truth) for r in self.references)]
        return [TEXT, *values] if TEXT in self.controls else values

    @cached_property
    def seconds(self) -> list[float]:
        return [min(float(reference.truth["seconds"]), self.longest) for reference in self.references]

    @cached_property
    def captions(self) -> list[tuple[str, AttributeTargets]]:
        """One of each clip's captions, each in turn, and what it says."""
        found = []
        for i, reference in enumerate(self.references):
            texts, mentions = reference.truth["prompt"], reference.truth["prompt_mentions"]
            which = i % len(texts)
            found.append((texts[which], targets_from_caption(texts[which], mentions[which], reference.truth, self.families)))
        return found

    def setting(self, name: str, given: Collection[str], *, reads: bool = True) -> ControlSetting:
        """Every clip asked for with these controls."""
        items, wishes = [], []
        for i, (reference, seconds) in enumerate(zip(self.references, self.seconds, strict=True)):
            values = {control: VALUES[control](reference.truth) for control in given if control != TEXT}
            chroma = reference.chroma if "melody" in given else None
            wish = targets_from_values(reference.truth, values, seconds=seconds, chroma=chroma)
            item = {control: value for control, value in values.items() if value is not None}
            if TEXT in given:
                text, said = self.captions[i]
                item, wish = {TEXT: text, **item}, _joined(said, wish)
            items.append(item)
            wishes.append(replace(wish, seconds=seconds))
        return ControlSetting(name, items, wishes, self.seconds, reads, frozenset(given))

    def handwritten_setting(self) -> ControlSetting:
        """Sixty prompts that stand for no reference."""
        entries = handwritten_prompts()
        wishes = [targets_from_handwritten(entry, self.families) for entry in entries]
        seconds = [min(HAND_SECONDS, self.longest)] * len(entries)
        prompts = [{TEXT: entry["prompt"]} for entry in entries]
        return ControlSetting("hand", prompts, wishes, seconds, given=frozenset({TEXT}), references=False)


def settings(asking: EvaluationSet, wanted: Sequence[str] = ()) -> list[ControlSetting]:
    """The settings of these names, or all that there are; RequestError names one that there is not.

    Where text and values meet, no value is read in the text: then it is known which of the two said it.
    """
    controls = asking.measured
    if not controls:
        raise RequestError(
            f"none of this system's controls is measured here; there are {', '.join(asking.controls) or 'none'}, "
            f"it takes {TEXT}, {' or '.join(VALUES)}"
        )
    there = _there(controls, asking.extracts_prompt_values)
    found = []
    for name in _chosen(there, controls, wanted):
        given, reads = there[name]
        found.append(asking.handwritten_setting() if name == "hand" else asking.setting(name, given, reads=reads))
    return found


def _there(controls: Sequence[str], reads: bool) -> dict[str, tuple[Sequence[str], bool]]:
    """Every setting by its name: the controls that are given, and whether values are read in texts."""
    found: dict[str, tuple[Sequence[str], bool]] = {"nothing": ((), True)}
    for control in controls:
        found[display_name(control)] = [control], True
    if TEXT in controls:
        if reads:
            found["unread"] = [TEXT], False
        found["hand"] = [TEXT], True
    if len(controls) > 2:  # with two, all but one is the other alone
        for control in controls:
            found[BUT + display_name(control)] = [other for other in controls if other != control], not reads
    if len(controls) > 1:
        found["all"] = controls, not reads
    return found


def setting_without(setting: ControlSetting, asked: Sequence[ControlSetting], control: str) -> ControlSetting | None:
    """The setting without this control and otherwise the same, if it was asked."""
    if not setting.references or control not in setting.given:
        return None
    found = [other for other in asked if other.references and other.given == setting.given - {control}]
    return next((other for other in found if other.reads == setting.reads), found[0] if found else None)


def _chosen(there: Collection[str], controls: Sequence[str], wanted: Collection[str]) -> list[str]:
    """The names that are wanted, groups taken apart, in the order in which they are there; all where none is named."""
    together = [name for name in there if name.startswith("all")]
    groups = {"alone": ["nothing", *map(display_name, controls)], "together": together}
    for name in wanted:
        if name not in there and name not in groups:
            raise RequestError(f"no setting called '{name}'.{did_you_mean(name, [*there, *groups])}")
    found = {one for name in wanted for one in groups.get(name, [name])}
    return [name for name in there if not wanted or name in found]


def display_name(control: str) -> str:
    """A control's name in those of settings."""
    return "text" if control == TEXT else control


def _joined(text: AttributeTargets, values: AttributeTargets) -> AttributeTargets:
    """What a text and values say together, the values where both speak."""
    told = {one.name: getattr(values, one.name) for one in fields(AttributeTargets)}
    return replace(text, **{name: value for name, value in told.items() if value is not None})
