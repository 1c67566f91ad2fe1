"""The codec floor: what of the truth survives a codec, before anything is generated with it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cadenza.core.types import Codes
from cadenza.data.manifest import Manifest
from cadenza.data.sources import load_manifest
from cadenza.dsp.audio import Audio, load_audio
from cadenza.dsp.spectral import mel_distance, si_sdr
from cadenza.evaluation.estimators import Accuracy, accuracy, load_estimators
from cadenza.evaluation.labels import labels_from_sidecar
from cadenza.evaluation.report_files import format_score, plot_bars, write_json, write_text
from cadenza.evaluation.settings import Reference, sample_references
from cadenza.system.system import System

FLOOR = {"tempo": 0.95, "key": 0.95, "family": 0.95, "melody": 0.9}  # of the clean score, at least
USE = 0.8


@dataclass(frozen=True)
class FamilyQuality:
    """How a codec treats the clips led by one family."""

    clips: int
    si_sdr: float
    mel: float


@dataclass(frozen=True)
class CodecReport:
    """Estimator scores clean and through the codec, distances per leading family, use of each codebook."""

    system: str
    estimators: str
    clips: int
    clean: Accuracy
    coded: Accuracy
    retained: dict[str, float]  # score through the codec over clean score
    families: dict[str, FamilyQuality]
    si_sdr: float
    mel: float
    use: list[float]  # share of each codebook's entries that occur
    perplexity: list[float]  # two to the entropy of each codebook
    passed: dict[str, bool]


def evaluate_codec(
    system: System,
    held_out: str | Path | Manifest,
    *,
    out: str | Path | None = None,
    clips: int = 200,
    progress: Callable[[str], None] = lambda line: None,
) -> CodecReport:
    """What survives the codec of a system, on held-out clips with known truths; written into `out` if given."""
    manifest = held_out if isinstance(held_out, Manifest) else load_manifest(held_out)[0]
    listen, refs = load_estimators(), sample_references(manifest, clips)
    clean, through, truths, losses, counts = [], [], [], [], None
    for done, ref in enumerate(refs, 1):
        audio = load_audio(ref.clip.audio).resample(system.codec.spec.sample_rate).to_channels(system.codec.spec.channels)
        frames = system.codec.encode(audio.to(system.device))
        made = system.codec.decode(frames).to("cpu")
        clean += listen(audio)
        through += listen(made)
        truths.append(labels_from_sidecar(ref.truth, len(clean[-1].chords), families=listen.families))
        losses.append(_distances(made, audio))
        counts = _counted(frames, system.codec.frame_format.cardinality, counts) if isinstance(frames, Codes) else None
        if done % 20 == 0 or done == len(refs):
            progress(f"{done} of {len(refs)} clips through the codec")
    before, after = accuracy(clean, truths), accuracy(through, truths)
    kept = {name: getattr(after, name) / getattr(before, name) for name in (*FLOOR, "chords", "lead") if getattr(before, name)}
    use, perplexity = ([], []) if counts is None else _codebooks(counts)
    report = CodecReport(
        system=system.card.name,
        estimators=listen.sha256,
        clips=len(refs),
        clean=before,
        coded=after,
        retained=kept,
        families=_by_family(refs, losses),
        si_sdr=_mean([d for d, _ in losses]),
        mel=_mean([m for _, m in losses]),
        use=use,
        perplexity=perplexity,
        passed={**{n: kept.get(n, 0.0) >= low for n, low in FLOOR.items()}, "use": all(u >= USE for u in use)},
    )
    if out is not None:
        _write(report, Path(out))
    return report


def _distances(made: Audio, audio: Audio) -> tuple[float, float]:
    samples = min(made.wave.shape[-1], audio.wave.shape[-1])
    x, y = made.wave[0, :, :samples].mean(0), audio.wave[0, :, :samples].mean(0)
    return float(si_sdr(x[None, None], y[None, None])), mel_distance(x, y, audio.sample_rate)


def _counted(frames: Codes, cardinality: int, counts: Tensor | None) -> Tensor:
    ids = frames.ids[0, :, : int(frames.lengths[0])].cpu()
    now = torch.stack([torch.bincount(row, minlength=cardinality) for row in ids])
    return now if counts is None else counts + now


def _codebooks(counts: Tensor) -> tuple[list[float], list[float]]:
    chance = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    bits = -(chance * torch.log2(chance.clamp(min=1e-12))).sum(-1)
    return (counts > 0).float().mean(-1).tolist(), (2**bits).tolist()


def _by_family(refs: Sequence[Reference], losses: Sequence[tuple[float, float]]) -> dict[str, FamilyQuality]:
    found: dict[str, list[tuple[float, float]]] = {}
    for ref, loss in zip(refs, losses, strict=True):
        found.setdefault(ref.truth["lead_family"], []).append(loss)
    return {
        name: FamilyQuality(len(xs), _mean([d for d, _ in xs]), _mean([m for _, m in xs])) for name, xs in sorted(found.items())
    }


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _write(report: CodecReport, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write_json(report, out / "codec.json")
    write_text(markdown(report), out / "codec.md")
    plot_bars(
        {name: loss.si_sdr for name, loss in report.families.items()}, "SI-SDR in dB by leading family", out / "codec.png"
    )


def markdown(report: CodecReport) -> str:
    """The report in tables."""
    lines = [
        f"# The codec of {report.system}",
        "",
        f"{report.clips} held-out clips; estimators {report.estimators[:12]}; SI-SDR {format_score(report.si_sdr)} dB, "
        f"mel distance {format_score(report.mel)} dB.",
        "",
        "| estimate | clean | through | kept | floor |",
        "|---|---|---|---|---|",
    ]
    clean, through = asdict(report.clean), asdict(report.coded)
    for name, kept in report.retained.items():
        floor = f"{FLOOR[name]:.2f}" if name in FLOOR else ""
        lines.append(
            f"| {name} | {format_score(clean[name])} | {format_score(through[name])} | {format_score(kept)} | {floor} |"
        )
    lines += ["", "| led by | clips | SI-SDR dB | mel distance dB |", "|---|---|---|---|"]
    lines += [f"| {n} | {f.clips} | {format_score(f.si_sdr)} | {format_score(f.mel)} |" for n, f in report.families.items()]
    if report.use:
        lines += ["", "| codebook | entries used | perplexity |", "|---|---|---|"]
        lines += [f"| {i} | {u:.1%} | {p:.0f} |" for i, (u, p) in enumerate(zip(report.use, report.perplexity, strict=True))]
    failed = [name for name, passed in report.passed.items() if not passed]
    lines += ["", "Every floor is kept." if not failed else f"Below the floor: {', '.join(failed)}."]
    return "\n".join(lines) + "\n"
