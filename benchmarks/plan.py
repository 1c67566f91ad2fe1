"""Peak memory that the planner estimates and that is measured, each in a fresh process, for 12 cells.

    python benchmarks/plan.py --out benchmarks/results/cpu-2-cores/DATE-planner

The models other than `starter` have the geometries below and random weights. Bytes are the largest resident size of the
process, which loads the model and runs `System.generate` once. The planner gets the folder of the model and the request.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_CPU_TIME = "CADENZA_PLAN_CPU_TIME"  # environment: tells the processes of the cells which clock they go by
PROMPT = "slow piano in A minor, 80 bpm"
ENCODEC_24 = {"type": "encodec", "sample_rate": 24000, "strides": [8, 5, 4, 2], "codebooks": 4, "lstm_layers": 2}
ENCODEC_32 = {
    **{"type": "encodec", "sample_rate": 32000, "strides": [8, 5, 4, 4], "codebooks": 4, "bins": 2048, "filters": 64},
    **{"causal": False, "pad_mode": "reflect", "lstm_layers": 2},
}
LM = {"type": "codec_lm", "positions": "sinusoidal", "end_of_sequence": False, "max_frames": 1500}
TEXT = {"type": "text", "dim": 256, "depth": 4, "heads": 4}


def _model(codec: dict[str, Any], width: int, depth: int, prompt: dict[str, Any]) -> dict[str, Any]:
    lm = {**LM, "width": width, "depth": depth, "heads": width // 64}
    return {
        "codec": codec,
        "conditioners": {"prompt": {**prompt, "width": width}},
        "fusion": {"cross": ["prompt"]},
        "generator": lm,
    }


MODELS = {
    "w512": _model(ENCODEC_24, 512, 8, TEXT),
    "stereo": _model({"type": "stereo", "codec": ENCODEC_32}, 512, 8, TEXT),
    "small": _model(ENCODEC_32, 1024, 24, {"type": "t5", "model": "T5", "null_embedding": "zeros", "project": "always"}),
}  # `small` is MusicGen's: its language model, EnCodec and an encoder as large as T5-base
T5 = {"model_type": "t5", "pad_token_id": 0, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 12}
T5 |= {"vocab_size": 32128, "decoder_start_token_id": 0}
CELLS = [  # model, seconds, clips, dtype or what the weights are quantised to
    ("starter", 4, 1, "float32"),
    ("starter", 30, 1, "bfloat16"),
    ("starter", 10, 8, "float32"),
    ("starter", 60, 2, "float32"),
    ("w512", 8, 1, "float32"),
    ("w512", 30, 2, "bfloat16"),
    ("w512", 8, 8, "float32"),
    ("stereo", 12, 1, "float32"),
    ("small", 4, 1, "float32"),
    ("small", 10, 1, "bfloat16"),
    ("small", 6, 4, "bfloat16"),
    ("small", 30, 1, "int8"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a folder for plan.json and README.md")
    parser.add_argument("--cells", type=int, nargs="+", help="only these, counted from 1")
    parser.add_argument("--repeat", type=int, default=1, help="times that a cell is measured; the middle counts")
    parser.add_argument("--models", type=Path, help="a folder for the random models, kept there for the next time")
    parser.add_argument("--threads", type=int, help="as many as torch likes by default")
    parser.add_argument(
        "--cpu-time", action="store_true", help="of the process, not of the clock: for one thread of a shared machine"
    )
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.cpu_time:
        os.environ[_CPU_TIME] = "1"
    if asked.threads:
        os.environ["OMP_NUM_THREADS"] = str(asked.threads)
    if asked.child:
        if _CPU_TIME in os.environ:
            time.perf_counter = time.process_time
        what, *rest = asked.child
        return {"build": _build, "estimate": _estimate, "measure": _measure}[what](*rest)
    cells = CELLS if asked.cells is None else [CELLS[i - 1] for i in asked.cells]
    with tempfile.TemporaryDirectory(prefix="cadenza-plan-") as temporary:
        folder, rows = asked.models or Path(temporary), []
        for model, seconds, clips, how in cells:
            place = model if model not in MODELS else str(folder / model)
            if model in MODELS and not (folder / model).exists():
                _run("build", model, str(folder))
            estimated, measured = [], []
            for _ in range(asked.repeat):
                estimated.append(_run("estimate", place, str(seconds), str(clips), how))
                measured.append(_run("measure", place, str(seconds), str(clips), how))
            row = {"model": model, "seconds": seconds, "clips": clips, "how": how, **_medians(estimated, measured)}
            rows.append(row)
            print(_line(row), flush=True)
            if asked.out is not None:
                _write(asked.out, rows, " ".join(["python benchmarks/plan.py", *sys.argv[1:]]))


def _medians(estimated: list[dict[str, Any]], measured: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of the medians."""
    at = len(measured) // 2
    pick = lambda runs, name: sorted(run[name] for run in runs)[at]  # noqa: E731
    return {
        "estimated": {"bytes": pick(estimated, "bytes"), "parts": estimated[0]["parts"]},
        "measured": {"bytes": pick(measured, "bytes"), "seconds": pick(measured, "seconds")},
        "plan_seconds": pick(estimated, "seconds"),
    }


def _line(row: dict[str, Any]) -> str:
    estimated, measured = row["estimated"]["bytes"], row["measured"]["bytes"]
    return (
        f"| {row['model']} | {row['seconds']} | {row['clips']} | {row['how']} | {estimated / 1e6:.0f} | {measured / 1e6:.0f} "
        f"| {100 * (estimated / measured - 1):+.0f} % | {row['measured']['seconds']:.1f} | {row['plan_seconds']:.1f} |"
    )


def _write(folder: Path, rows: list[dict[str, Any]], command: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    machine = {"cores": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()}
    (folder / "plan.json").write_text(json.dumps({"machine": machine, "command": command, "cells": rows}, indent=1) + "\n")
    errors = [abs(row["estimated"]["bytes"] / row["measured"]["bytes"] - 1) for row in rows]
    summary = (
        f"bytes: {sum(x <= 0.15 for x in errors)} of {len(errors)} cells within 15 %, largest error {100 * max(errors):.0f} %"
    )
    head = "| model | seconds | clips | dtype | MB estimated | measured | | s to generate | s to plan |\n" + "|---" * 9 + "|"
    about = (__doc__ or "").strip().split("\n\n")[-1]
    text = ["# Memory estimates of the planner", "", about, "", summary, "", head]
    (folder / "README.md").write_text("\n".join([*text, *map(_line, rows)]) + "\n")


def _run(*what: str) -> Any:
    """What a fresh process finds."""
    environment = {**os.environ, "CADENZA_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", *what], capture_output=True, text=True, env=environment, check=False
    )
    if done.returncode:
        sys.exit(f"{' '.join(what)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _build(model: str, folder: str) -> None:
    """Build a model of random weights, and the encoder that it needs, in a folder."""
    import torch

    from cadenza.apps.cli.plan import build_on_meta
    from cadenza.system.spec import SystemSpec
    from cadenza.system.system import System

    told = json.loads(json.dumps(MODELS[model]))
    if (text := told["conditioners"]["prompt"])["type"] == "t5":
        text["model"] = str(_t5(Path(folder) / "T5"))
    spec = SystemSpec.parse(told)
    some = 0.02 * torch.randn(1 << 18, generator=torch.Generator().manual_seed(0))
    made = {name: torch.ones_like(x, device="cpu") for name, x in build_on_meta(spec).state_dict().items()}
    for x in made.values():
        if x.is_floating_point():
            x.copy_(some.repeat(-(-x.numel() // len(some)))[: x.numel()].view_as(x))
    with torch.device("meta"):
        system = System(spec)
    if isinstance(getattr(system.conditioners["prompt"], "merges", None), torch.Tensor):
        made["conditioners.prompt.merges"].fill_(-1)
    system.load_state_dict(made, assign=True)
    system.save(Path(folder) / model)
    print("{}")


def _t5(folder: Path) -> Path:
    """A T5 of random weights with a tokenizer of a few words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    from cadenza.conditioners.t5 import stored_weights
    from cadenza.nn.frozen import save_model
    from cadenza.nn.t5 import T5Config, T5Encoder

    if folder.exists():
        return folder
    folder.mkdir(parents=True)
    words = ["<pad>", "</s>", "<unk>", *dict.fromkeys(PROMPT.split())]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    with torch.device("meta"):
        shapes = T5Encoder(T5Config.from_dict(T5)).state_dict()
    save_model(folder, T5, [], stored_weights({name: torch.full(x.shape, 0.01) for name, x in shapes.items()}))
    return folder


def _how(how: str) -> tuple[Any, str | None]:
    import torch

    return (torch.float32, how) if how in ("int8", "int4") else (getattr(torch, how), None)


def _asked(model: str, seconds: str, clips: str) -> dict[str, Any]:
    return {"request": [{"prompt": PROMPT}] * int(clips), "seconds": float(seconds), "sampling": {"allow_eos": False}}


def _estimate(model: str, seconds: str, clips: str, how: str) -> None:
    """Print the planner's estimate for a cell."""
    from cadenza.apps.api import resolve
    from cadenza.apps.cli.plan import plan_before_loading
    from cadenza.system.request import Request

    started = time.perf_counter()
    dtype, quantize = _how(how)
    found, fields = resolve(model), _asked(model, seconds, clips)
    request = Request.from_input(fields.pop("request"), **fields)
    memory = plan_before_loading(found, request, dtype=dtype, quantize=quantize).memory
    print(json.dumps({"bytes": memory.peak, "parts": memory.breakdown(), "seconds": time.perf_counter() - started}))


def _measure(model: str, seconds: str, clips: str, how: str) -> None:
    """Print the bytes and seconds of a cell."""
    import torch

    import cadenza
    from cadenza.core.device import choose_threads

    dtype, quantize = _how(how)
    more = {} if quantize is None else {"quantize": quantize}
    system = cadenza.load(model, dtype=dtype, device="cpu", **more)  # type: ignore[arg-type]
    choose_threads(system)
    wanted = _asked(model, seconds, clips)
    began = time.perf_counter()
    audio = system.generate(wanted.pop("request"), **wanted)
    took = time.perf_counter() - began
    assert audio.wave.shape[0] == int(clips) and bool(torch.isfinite(audio.wave).all())
    print(json.dumps({"bytes": _peak(), "seconds": took}))


def _peak() -> int:
    """The most bytes that this process has held."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise SystemExit("the peak is not known on this system")


if __name__ == "__main__":
    main()
