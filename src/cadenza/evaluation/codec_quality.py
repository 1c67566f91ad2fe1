"""Codec quality: the estimator scores and the fidelity that a codec keeps, before any generation with it."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from cadenza.core.types import Codes
from cadenza.data.manifest import Manifest
from cadenza.dsp.audio import Audio
from cadenza.dsp.spectral import mel_distance, si_sdr
from cadenza.evaluation.estimators import Accuracy, accuracy, load_estimators, mean_of_finite
from cadenza.evaluation.labels import labels_from_sidecar
from cadenza.evaluation.report_files import format_score, format_table, plot_bars, write_json, write_text
from cadenza.evaluation.settings import sample_references
from cadenza.system.system import System

MIN_RETAINED = {"tempo": 0.95, "key": 0.95, "family": 0.95, "melody": 0.9}  # of the clean score
MIN_CODEBOOK_USE = 0.8


@dataclass(frozen=True)
class FamilyQuality:
    """Distances of the clips led by one family: SI-SDR and mel distance in dB."""

    clips: int
    si_sdr: float
    mel: float


@dataclass(frozen=True)
class CodecReport:
    """Estimator scores of clean and coded clips, distances per leading family, use of each codebook."""

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
    """Measure the codec of a system on held-out labelled clips; write the report into `out` if given.

    Raises DataError for fewer than two labelled clips.
    """
    codec, estimator, references = system.codec, load_estimators(), sample_references(held_out, clips)
    clean, coded, labels, distances, families = [], [], [], [], {}
    counts: list[Tensor] = []  # of each clip, [k, v]
    for done, reference in enumerate(references, 1):
        audio = reference.load_audio(codec)
        frames = codec.encode(audio.to(system.device))
        decoded = codec.decode(frames).to("cpu")
        clean += estimator(audio)
        coded += estimator(decoded)
        labels.append(labels_from_sidecar(reference.sidecar, len(clean[-1].chords), families=estimator.families))
        distances.append(_distances(decoded, audio))
        families.setdefault(reference.sidecar["lead_family"], []).append(distances[-1])
        if isinstance(frames, Codes):
            ids = frames.ids[0, :, : int(frames.lengths[0])].cpu()
            counts.append(torch.stack([torch.bincount(row, minlength=codec.frame_format.cardinality) for row in ids]))
        if done % 20 == 0 or done == len(references):
            progress(f"{done} of {len(references)} clips through the codec")
    before, after = accuracy(clean, labels), accuracy(coded, labels)
    names = (*MIN_RETAINED, "chords", "lead")
    retained = {name: getattr(after, name) / getattr(before, name) for name in names if getattr(before, name)}
    use, perplexity = _codebook_statistics(torch.stack(counts).sum(0)) if counts else ([], [])
    passed = {name: retained.get(name, 0.0) >= minimum for name, minimum in MIN_RETAINED.items()}
    total = _quality(distances)
    report = CodecReport(
        system=system.card.name,
        estimators=estimator.sha256,
        clips=len(references),
        clean=before,
        coded=after,
        retained=retained,
        families={name: _quality(group) for name, group in sorted(families.items())},
        si_sdr=total.si_sdr,
        mel=total.mel,
        use=use,
        perplexity=perplexity,
        passed={**passed, "use": all(share >= MIN_CODEBOOK_USE for share in use)},
    )
    if out is not None:
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        write_json(report, out / "codec.json")
        write_text(codec_markdown(report), out / "codec.md")
        bars = {name: family.si_sdr for name, family in report.families.items()}
        plot_bars(bars, out / "codec.png", title="SI-SDR in dB by leading family")
    return report


def _distances(decoded: Audio, audio: Audio) -> tuple[float, float]:
    """SI-SDR and mel distance in dB, in mono over the shorter length."""
    samples = min(decoded.wave.shape[-1], audio.wave.shape[-1])
    x, y = decoded.wave[0, :, :samples].mean(0), audio.wave[0, :, :samples].mean(0)
    return float(si_sdr(x[None, None], y[None, None])), mel_distance(x, y, audio.sample_rate)


def _codebook_statistics(counts: Tensor) -> tuple[list[float], list[float]]:
    """Share of entries used and perplexity of each codebook."""
    probability = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    bits = -(probability * torch.log2(probability.clamp(min=1e-12))).sum(-1)
    return (counts > 0).float().mean(-1).tolist(), (2**bits).tolist()


def _quality(distances: Sequence[tuple[float, float]]) -> FamilyQuality:
    ratios, mels = zip(*distances, strict=True)
    return FamilyQuality(len(distances), mean_of_finite(ratios), mean_of_finite(mels))


def codec_markdown(report: CodecReport) -> str:
    """Return the report as Markdown tables."""
    clips = f"{report.clips} held-out clips; estimators {report.estimators[:12]}"
    distances = f"SI-SDR {format_score(report.si_sdr)} dB, mel distance {format_score(report.mel)} dB"
    lines = [f"# The codec of {report.system}", "", f"{clips}; {distances}."]
    clean, coded = asdict(report.clean), asdict(report.coded)
    rows = []
    for name, share in report.retained.items():
        minimum = f"{MIN_RETAINED[name]:.2f}" if name in MIN_RETAINED else ""
        rows.append([name, format_score(clean[name]), format_score(coded[name]), format_score(share), minimum])
    lines += format_table("estimate | clean | through the codec | retained | minimum", rows)
    rows = [[name, f.clips, format_score(f.si_sdr), format_score(f.mel)] for name, f in report.families.items()]
    lines += format_table("led by | clips | SI-SDR dB | mel distance dB", rows)
    if report.use:
        statistics = enumerate(zip(report.use, report.perplexity, strict=True))
        rows = [[i, f"{use:.1%}", f"{perplexity:.0f}"] for i, (use, perplexity) in statistics]
        lines += format_table("codebook | entries used | perplexity", rows)
    failed = [name for name, passed in report.passed.items() if not passed]
    lines += ["", f"Below the minimum: {', '.join(failed)}." if failed else "All minimums are reached."]
    return "\n".join(lines) + "\n"
