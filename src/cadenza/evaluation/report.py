"""The score report of a system: adherence with intervals, own effects, copies, soundness, speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from cadenza.core.errors import RequestError
from cadenza.data.manifest import Manifest
from cadenza.data.source import manifest_of
from cadenza.dsp.audio import Audio, read
from cadenza.evaluation.adherence import Interval
from cadenza.evaluation.copies import Copies, copies, fingerprints
from cadenza.evaluation.estimates import Estimate
from cadenza.evaluation.estimators import Estimators, load_estimators
from cadenza.evaluation.making import Maker
from cadenza.evaluation.scores import Measured, changes, scores
from cadenza.evaluation.settings import TEXT, Asking, Reference, Setting, references, settings
from cadenza.evaluation.soundness import Soundness, soundness
from cadenza.evaluation.write import SHOWN, write
from cadenza.system.system import System

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """Everything that was measured of a system."""

    system: str
    estimators: str  # sha256 of the weights that listened
    clips: int
    seeds: tuple[int, ...]
    guidance: float
    scores: dict[str, dict[str, Measured]]  # by setting, then by attribute
    changes: dict[str, dict[str, Interval]]  # by the control that is added to all others, then by attribute, as parts of A
    off: dict[str, float]  # by setting, the seconds by which clips end early or late
    soundness: dict[str, Soundness]  # by setting, and of the references
    copies: Copies | None
    speed: dict[str, float]  # seconds of audio per second, alone and in a batch


@dataclass(frozen=True)
class Extent:
    """How much is asked: held-out clips in each setting, with each seed, in the settings of these names or in all."""

    clips: int = 200
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Listened:
    """What is kept of the clips of a setting, by seed and clip, once they have been heard."""

    estimates: list[list[Estimate]]
    soundness: Soundness
    prints: list[Tensor]  # for the search for copies
    shown: list[Audio]


def evaluate(
    system: System,
    held_out: str | Path | Manifest,
    *,
    out: str | Path,
    extent: Extent = Extent(),  # noqa: B008
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
    refs = references(_manifest(held_out), extent.clips)
    longest = system.spec.generator.context / system.codec.grid.frame_rate if system.spec.generator else 0.0
    asking = Asking(refs, listen.families, list(system.conditioners), longest, bool(system.spec.reads))
    asked = settings(asking, extent.settings)
    maker, trained_on = Maker(system, out / "clips", guidance), None if training is None else _manifest(training)
    progress("reference renders through the codec")
    through = [_through(system, ref) for ref in refs]
    ceiling = [_heard(listen, clip) for clip in through]
    results = {}
    for setting in asked:
        made = [_made(maker, setting, seed, progress) for seed in extent.seeds]
        results[setting.name] = _listened(listen, made, prints=training is not None)
        progress(f"{setting.name}: heard")
    heard = {name: result.estimates for name, result in results.items()}
    captions = [wish for _, wish in asking.captions] if TEXT in asking.measured else []
    found = scores(asked, heard, ceiling=ceiling, captions=captions)
    report = Report(
        system=system.card.name,
        estimators=listen.sha256,
        clips=len(refs),
        seeds=extent.seeds,
        guidance=system.spec.defaults.guidance if guidance is None else guidance,
        scores=found,
        changes=changes(asked, heard, found),
        off={s.name: _off(s, heard[s.name]) for s in asked},
        soundness={
            **{name: result.soundness for name, result in results.items()},
            "reference": soundness([read(r.clip.audio) for r in refs]),
        },
        copies=None if trained_on is None else _copies([r.prints for r in results.values()], refs, trained_on, progress),
        speed=_speed(maker, asked),
    )
    write(report, out, made={name: r.shown for name, r in results.items()}, through=through[:SHOWN], asked=asked)
    progress(f"report in {out}")
    return report


def _listened(listen: Estimators, made: Sequence[Sequence[Audio]], *, prints: bool) -> Listened:
    clips = [clip for batch in made for clip in batch]
    return Listened(
        [[_heard(listen, clip) for clip in batch] for batch in made],
        soundness(clips),
        [one for clip in clips for one in fingerprints(clip)] if prints else [],
        list(made[0][:SHOWN]),
    )


def _made(maker: Maker, setting: Setting, seed: int, progress: Progress) -> list[Audio]:
    return maker.clips(
        setting, seed, progress=lambda done, total: progress(f"{setting.name}, seed {seed}: {done} of {total} clips")
    )


def _off(setting: Setting, batches: Sequence[Sequence[Estimate]]) -> float:
    """The mean of how far the lengths heard are from those asked for."""
    gaps = [abs(e.seconds - seconds) for batch in batches for e, seconds in zip(batch, setting.seconds, strict=True)]
    return sum(gaps) / len(gaps)


def _heard(listen: Estimators, clip: Audio) -> Estimate:
    return listen(clip)[0]


def _through(system: System, reference: Reference) -> Audio:
    """A reference render through the codec."""
    codec = system.codec
    clip = read(reference.clip.audio).resample(codec.spec.sample_rate).mix(codec.spec.channels)
    return codec.decode(codec.encode(clip.to(system.device))).to("cpu")


def _copies(made: Sequence[list[Tensor]], refs: Sequence[Reference], training: Manifest, progress: Progress) -> Copies:
    generated = [one for prints in made for one in prints]
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
