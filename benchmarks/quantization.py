"""Quality of a music model with quantised weights: the gap of its predictions, and its adherence.

    cadenza corpus held_out --hours 0.75 --seed 900001 --held-out
    python benchmarks/quantization.py starter --data held_out --out results

Predictions (`agreement.json`, `agreement.md`): each code of the references given the true ones before it, against float32.
Adherence (`adherence.json`, `adherence.md`): the same requests and seeds, generated and estimated with each kind of weights.
"""

import argparse
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from prediction_gap import CodesExample, MeanWithInterval, compare_systems
from score_gaps import mean_gaps, overall_gap, score_gaps

import cadenza
from cadenza.core.types import Codes
from cadenza.data.sources import load_manifest
from cadenza.evaluation.adherence import Interval, score_settings
from cadenza.evaluation.estimators import Estimate, load_estimators
from cadenza.evaluation.report import ClipGenerator
from cadenza.evaluation.report_files import format_interval, setting_label
from cadenza.evaluation.settings import EvaluationSet, sample_references, settings
from cadenza.nn.weight_quantization import KINDS
from cadenza.system.system import System

FULL = "float32"
Table = list[list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True, help="a held-out corpus")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--made", type=Path, default=Path("made"), help="where clips are kept, and found when begun again")
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--settings", nargs="+", default=["alone", "handwritten", "all"])
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 3.0, 6.0], help="of guidance, for predictions")
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--only", choices=("agreement", "adherence"))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    systems = {FULL: cadenza.load(asked.model, device="cpu")}
    systems |= {kind: cadenza.load(asked.model, device="cpu", quantize=kind) for kind in asked.kinds}
    listen = load_estimators()
    full = systems[FULL]
    longest = full.spec.generator.max_frames / full.codec.frame_format.frame_rate  # type: ignore[union-attr]
    refs = sample_references(load_manifest(asked.data)[0], asked.clips)
    asking = EvaluationSet(refs, listen.families, list(full.conditioners), longest, bool(full.spec.prompt_patterns))
    if asked.only != "adherence":
        agreements(asked, systems, asking)
    if asked.only != "agreement":
        adherences(asked, systems, asking, listen)


def agreements(asked: argparse.Namespace, systems: Mapping[str, System], asking: EvaluationSet) -> None:
    """Predictions of the references' codes, asked for with everything that is known of them."""
    full = systems[FULL]
    others = {"bfloat16": (cadenza.load(asked.model, device="cpu", dtype="bfloat16"), False)}
    for kind in asked.kinds:
        others |= {f"{kind}, weights alone": (systems[kind], False), f"{kind}, as clips are made": (systems[kind], True)}
    found = compare_systems(full, others, excerpts(full, asking), scales=asked.scales)
    clips = next(iter(found.values())).clips
    rows = [
        [name, f"{scale:g}", nats(one.divergence), " / ".join(f"{x:.1e}" for x in one.divergence.codebooks),
         share(one.likeliest), share(one.drawn), nats(one.loss)]
        for (name, scale), one in found.items()
    ]  # fmt: skip
    head = [
        "weights",
        "guidance",
        "KL, nats a code",
        "by codebook",
        "same likeliest code",
        "same code drawn",
        "loss, nats a code",
    ]
    text = [f"{clips} held-out clips, {next(iter(found.values())).codes} codes; 95 % bootstrap bounds over clips.", ""]
    write(
        asked.out,
        "agreement",
        [*text, *table(head, rows)],
        {f"{name}, guidance {s:g}": asdict(a) for (name, s), a in found.items()},
    )


def excerpts(system: System, asking: EvaluationSet) -> Iterator[CodesExample]:
    """What the codec makes of each reference, as far as the model reaches."""
    codec = system.codec
    items = asking.setting("all", asking.measured, extracts_values=False).items
    for i, (reference, item) in enumerate(zip(asking.references, items, strict=True)):
        codes = codec.encode(reference.load_audio(codec))
        ids = codes.ids[:, :, : system.spec.generator.max_frames]  # type: ignore[union-attr]
        print(f"predictions: {i + 1} of {len(items)} clips", flush=True)
        yield CodesExample(Codes(ids), item)


def adherences(asked: argparse.Namespace, systems: Mapping[str, System], asking: EvaluationSet, listen: Any) -> None:
    """A of every system from the same requests and seeds, and what quantised ones score above full precision."""
    wanted = settings(asking, asked.settings)
    codec = systems[FULL].codec
    ceiling = []
    for reference in asking.references:
        ceiling.append(listen(codec.decode(codec.encode(reference.load_audio(codec))))[0])
    captions = [wish for _, wish in asking.captions]
    estimates: dict[str, dict[str, list[list[Estimate]]]] = {}
    for name, system in systems.items():
        maker = ClipGenerator(system, asked.made)
        estimates[name] = {}
        for setting in wanted:
            clips = maker.generate_cached(setting, 0)
            estimates[name][setting.name] = [[listen(clip)[0] for clip in clips]]
            print(f"{name}, {setting.name}: estimated", flush=True)
    found = {name: score_settings(wanted, each, ceiling=ceiling, captions=captions) for name, each in estimates.items()}
    apart = {name: score_gaps(wanted, estimates[FULL], estimates[name], found[FULL]) for name in asked.kinds}
    each = {name: mean_gaps(gap) for name, gap in apart.items()}
    total = {name: overall_gap(gap, wanted) for name, gap in apart.items()}
    rows = []
    for setting, attributes in found[FULL].items():
        for attribute, one in attributes.items():
            row = [setting_label(setting), attribute, str(one.asked)]
            row += [format_interval(found[name][setting][attribute].adherence.value) for name in systems]
            rows.append(row + [format_interval(each[name][setting][attribute]) for name in asked.kinds])
    means = [format_interval(total[name]) for name in asked.kinds]
    rows.append(["all but the prompts by hand", "the mean of all", str(len(asking.references)), *[""] * len(systems), *means])
    head = [
        "requested with",
        "attribute",
        "clips",
        *(f"A, {name}" for name in systems),
        *(f"{name} above {FULL}" for name in asked.kinds),
    ]
    inside = {name: within(found[FULL], found[name]) for name in asked.kinds}
    text = ["A with 95 % bootstrap bounds over clips; the last columns compare the same requests and seeds, as parts of A.", ""]
    text += [f"{name}: A lies within the bounds of {FULL} in {inside[name]} of {len(rows) - 1} rows." for name in asked.kinds]
    result = {
        "clips": len(asking.references),
        "adherence": {n: {s: {a: asdict(m) for a, m in row.items()} for s, row in f.items()} for n, f in found.items()},
        "above": {n: {s: {a: asdict(i) for a, i in row.items()} for s, row in f.items()} for n, f in each.items()},
        "overall": {name: asdict(interval) for name, interval in total.items()},
    }
    write(asked.out, "adherence", [*text, "", *table(head, rows)], result)


def within(full: Any, other: Any) -> int:
    """In how many rows A lies within the bounds of full precision."""
    pairs = [(one.adherence.value, other[s][a].adherence.value) for s, row in full.items() for a, one in row.items()]
    return sum(a.low <= b.value <= a.high for a, b in pairs)


def nats(measure: MeanWithInterval) -> str:
    mean: Interval = measure.mean
    return f"{mean.value:.1e} ({mean.low:.1e} to {mean.high:.1e})"


def share(measure: MeanWithInterval) -> str:
    mean = measure.mean
    return f"{mean.value:.1%} ({mean.low:.1%} to {mean.high:.1%})"


def table(head: list[str], rows: Table) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]


def write(out: Path, name: str, lines: list[str], result: Mapping[str, Any]) -> None:
    text = "\n".join(lines) + "\n"
    (out / f"{name}.md").write_text(text)
    (out / f"{name}.json").write_text(json.dumps(rounded(result), indent=1) + "\n")
    print(text, flush=True)


def rounded(value: Any) -> Any:
    """Numbers with four digits that count; what is none is null."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
