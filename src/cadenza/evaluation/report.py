"""The score report of a system: adherence with intervals, own effects, copies, soundness, speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from cadenza.core.errors import RequestError
from cadenza.data.manifest import Manifest
from cadenza.data.source import manifest_of
from cadenza.dsp.audio import Audio, read
from cadenza.evaluation.adherence import Adherence, Interval, adherence, difference, pairings
from cadenza.evaluation.copies import Copies, copies, fingerprints
from cadenza.evaluation.estimates import Estimate
from cadenza.evaluation.estimators import Estimators, load_estimators
from cadenza.evaluation.making import Maker
from cadenza.evaluation.settings import BESIDE, Reference, Setting, references, settings
from cadenza.evaluation.soundness import Soundness, soundness
from cadenza.evaluation.wishes import ATTRIBUTES
from cadenza.evaluation.write import write
from cadenza.system.system import System

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Measured:
    """One attribute in one setting: adherence, and the control's own effect where there is something beside it."""

    adherence: Adherence
    asked: int  # clips whose request says something of this attribute
    effect: Interval | None


@dataclass(frozen=True)
class Report:
    """Everything that was measured of a system."""

    system: str
    estimators: str  # sha256 of the weights that listened
    clips: int
    seeds: tuple[int, ...]
    guidance: float
    scores: dict[str, dict[str, Measured]]  # by setting, then by attribute
    soundness: dict[str, Soundness]  # by setting, and of the references
    copies: Copies | None
    speed: dict[str, float]  # seconds of audio per second, alone and in a batch


def evaluate(
    system: System,
    held_out: str | Path | Manifest,
    *,
    out: str | Path,
    clips: int = 200,
    seeds: Sequence[int] = (0,),
    training: str | Path | Manifest | None = None,
    guidance: float | None = None,
    progress: Progress = lambda line: None,
) -> Report:
    """Generates from the requests of held-out clips, listens, scores; writes JSON, Markdown and plots into `out`.

    `training` is what the system was trained on, for the copy rate. Interrupted, it goes on where it was.
    """
    if system.generator is None:
        raise RequestError("this system is a codec alone: measure it with evaluate_codec")
    out, listen = Path(out), load_estimators()
    refs = references(_manifest(held_out), clips)
    longest = system.spec.generator.context / system.codec.grid.frame_rate if system.spec.generator else 0.0
    asked = settings(refs, listen.families, controls=list(system.conditioners), longest=longest, reads=bool(system.spec.reads))
    maker = Maker(system, out / "clips", guidance)
    made = {s.name: [_made(maker, s, seed, progress) for seed in seeds] for s in asked}
    progress("reference renders through the codec")
    through = [_through(system, ref) for ref in refs]
    heard = {name: [[_heard(listen, clip) for clip in batch] for batch in batches] for name, batches in made.items()}
    report = Report(
        system=system.card.name,
        estimators=listen.sha256,
        clips=len(refs),
        seeds=tuple(seeds),
        guidance=system.spec.defaults.guidance if guidance is None else guidance,
        scores=_scores(asked, heard, [_heard(listen, clip) for clip in through]),
        soundness={
            **{n: soundness(sum(b, [])) for n, b in made.items()},
            "reference": soundness([read(r.clip.audio) for r in refs]),
        },
        copies=None if training is None else _copies(made, refs, _manifest(training), progress),
        speed=_speed(maker, asked),
    )
    write(report, out, made={name: batches[0] for name, batches in made.items()}, through=through, asked=asked)
    progress(f"report in {out}")
    return report


def _scores(
    asked: Sequence[Setting], heard: dict[str, list[list[Estimate]]], ceiling: Sequence[Estimate]
) -> dict[str, dict[str, Measured]]:
    """Every attribute that a setting asks for, with intervals."""
    named = {setting.name: setting for setting in asked}
    best = _ceilings(named, ceiling)
    found: dict[str, dict[str, Measured]] = {}
    for setting in asked:
        found[setting.name] = {}
        for attribute, met in ATTRIBUTES.items():
            table = pairings(heard[setting.name], setting.wishes, met)
            says = ~torch.tensor([met(heard[setting.name][0][0], wish) for wish in setting.wishes]).isnan()
            if int(says.sum()) < 2:
                continue
            reference = _reference(setting, ceiling, attribute, best)
            rng = torch.Generator().manual_seed(0)
            scored = adherence(table[:, says][:, :, says], reference[says], rng=rng)
            effect = _effect(setting, heard, attribute, table, says)
            found[setting.name][attribute] = Measured(scored, int(says.sum()), effect)
    return found


def _reference(setting: Setting, ceiling: Sequence[Estimate], attribute: str, best: dict[str, float]) -> Tensor:
    """Scores of the reference renders against the same requests; their mean where a request has no reference."""
    if setting.name == "hand":
        return torch.full((len(setting.wishes),), best[attribute])
    return torch.tensor([ATTRIBUTES[attribute](e, wish) for e, wish in zip(ceiling, setting.wishes, strict=True)])


def _ceilings(named: dict[str, Setting], ceiling: Sequence[Estimate]) -> dict[str, float]:
    """The mean score of the reference renders against what their captions say."""
    if "text" not in named:
        return dict.fromkeys(ATTRIBUTES, 1.0)
    wishes = named["text"].wishes
    found = {}
    for attribute, met in ATTRIBUTES.items():
        scores = torch.tensor([met(e, wish) for e, wish in zip(ceiling, wishes, strict=True)])
        found[attribute] = float(scores.nanmean())
    return found


def _effect(
    setting: Setting, heard: dict[str, list[list[Estimate]]], attribute: str, table: Tensor, says: Tensor
) -> Interval | None:
    """The score with this setting minus that of the same clips and seeds in the setting beside it."""
    beside = BESIDE.get(setting.name)
    if beside is None or beside not in heard or len(heard[beside][0]) != len(setting.wishes):
        return None
    met = ATTRIBUTES[attribute]
    own = table.diagonal(dim1=1, dim2=2)[:, says]
    other = torch.tensor([[met(e, w) for e, w in zip(batch, setting.wishes, strict=True)] for batch in heard[beside]])
    return difference(own, other[:, says], rng=torch.Generator().manual_seed(0))


def _made(maker: Maker, setting: Setting, seed: int, progress: Progress) -> list[Audio]:
    return maker.clips(
        setting, seed, progress=lambda done, total: progress(f"{setting.name}, seed {seed}: {done} of {total} clips")
    )


def _heard(listen: Estimators, clip: Audio) -> Estimate:
    return listen(clip)[0]


def _through(system: System, reference: Reference) -> Audio:
    """A reference render through the codec."""
    codec = system.codec
    clip = read(reference.clip.audio).resample(codec.spec.sample_rate).mix(codec.spec.channels)
    return codec.decode(codec.encode(clip.to(system.device))).to("cpu")


def _copies(made: dict[str, list[list[Audio]]], refs: Sequence[Reference], training: Manifest, progress: Progress) -> Copies:
    generated = [prints for batches in made.values() for clips in batches for clip in clips for prints in fingerprints(clip)]
    unseen = [prints for ref in refs for prints in fingerprints(read(ref.clip.audio))]
    every = max(1, len(training) // 20)

    def told(done: int) -> None:
        if done % every == 0:
            progress(f"copies: {done} of {len(training)} training clips")

    known = (fingerprints(read(clip.audio))[0] for clip in training.clips)
    found = copies(generated, unseen, known, progress=told)
    return replace(found, nearest=sorted(found.nearest)[:20])


def _speed(maker: Maker, asked: Sequence[Setting]) -> dict[str, float]:
    setting = asked[-1]
    item, seconds = setting.items[0], setting.seconds[0]
    return {"alone": maker.speed(item, seconds, clips=1), "batch of 8": maker.speed(item, seconds, clips=8)}


def _manifest(given: str | Path | Manifest) -> Manifest:
    return given if isinstance(given, Manifest) else manifest_of(given)[0]
