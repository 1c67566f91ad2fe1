"""Draw the pictures of the pages into `docs/pictures`: `python docs/draw.py`, with names to draw only these."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from PIL import Image

from cadenza.dsp.plots import code_colors
from cadenza.nn.patterns import Delay, Parallel, Pattern, Unroll

FOLDER = Path(__file__).parent / "pictures"
PROMPT, SECONDS, SEED = "slow solo piano in A minor, 80 bpm", 8.0, 0  # of the picture in the README
TUNE, BEAT = (76, 76, 77, 79, 79, 77, 76, 74, 72, 72, 74, 76, 76, 74, 74), 0.5  # MIDI pitches, seconds each
INK, PALE, EMPTY = "#333333", "#f4f2ee", "#e4e1da"
CODEBOOKS, FRAMES = 4, 7
STEP = 5  # the step that `step.png` shows


def generated(folder: Path) -> None:
    """Draw the spectrogram of a clip of the bundled model."""
    from cadenza.dsp.plots import save_spectrogram

    save_spectrogram(_clip(), folder / "generated.png", title=f"{PROMPT} (seed {SEED})")
    _slim(folder / "generated.png")


def steered(folder: Path) -> None:
    """Draw the spectrogram below 1.2 kHz of a clip with a melody condition, and the notes of the melody."""
    import cadenza
    from cadenza.dsp.spectral import stft

    notes = [(i * BEAT, (i + 1) * BEAT, pitch) for i, pitch in enumerate(TUNE)]
    item = {"prompt": "solo flute", "melody": notes, "tempo": 60 / BEAT}
    clip = cadenza.load("starter", device="cpu").generate(item, seconds=len(TUNE) * BEAT, seed=SEED)
    power = stft(clip.wave[0, 0], 2048, hop=256).abs().square().clamp(min=1e-10).log10()
    bins = round(1200 / clip.sample_rate * 2048)
    figure = Figure(figsize=(9, 3.2), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    extent = (0.0, float(clip.seconds[0]), 0.0, bins * clip.sample_rate / 2048)
    axes.imshow(power[:bins].numpy(), origin="lower", aspect="auto", cmap="magma", vmin=float(power.max()) - 5, extent=extent)
    for start, end, pitch in notes:
        hertz = 440 * 2 ** ((pitch - 69) / 12)
        axes.add_patch(Rectangle((start, hertz - 16), end - start, 32, fill=False, edgecolor="white", linewidth=1.1))
    axes.set(xlabel="seconds", ylabel="Hz", title=f"{item['prompt']}; melody in white (seed {SEED})")
    _save(figure, folder / "steered.png")


def tokens(folder: Path) -> None:
    """Draw the tokens of one second of the same clip."""
    import cadenza
    from cadenza.dsp.plots import plot_codes

    codec: Any = cadenza.load("starter", device="cpu").codec
    plot_codes(codec.encode(_clip()), folder / "tokens.png", frame_rate=codec.frame_format.frame_rate)
    _slim(folder / "tokens.png")


def patterns(folder: Path) -> None:
    """Draw the same frames in three orders: the code and frame that each step writes."""
    rules = [
        ("parallel: all codebooks of a frame at one step", Parallel()),
        ("delay: codebook k is written k steps later", Delay()),
        ("unroll: one code per step", Unroll()),
    ]
    laid = [(title, rule.pattern(CODEBOOKS, FRAMES)) for title, rule in rules]
    longest = max(len(pattern) for _, pattern in laid)
    figure = Figure(figsize=(11, 5.6), dpi=110, layout="constrained")
    rows = figure.subplots(len(laid), 1)
    for axes, (title, pattern) in zip(rows, laid, strict=True):
        _grid(axes, pattern, longest)
        axes.set_title(f"{title} ({len(pattern)} steps)", loc="left", fontsize=11, color=INK)
    rows[-1].set_xlabel("step")
    _save(figure, folder / "patterns.png")


def step(folder: Path) -> None:
    """Draw one step of the model: the sum of embeddings, a transformer, one head per codebook."""
    pattern = Delay().pattern(CODEBOOKS, FRAMES)
    figure = Figure(figsize=(11, 4.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlim=(0, 22), ylim=(-1.6, 7.2), aspect="equal")
    axes.axis("off")
    heights = [5.2 - 1.5 * row for row in range(CODEBOOKS)]
    for row, y in enumerate(heights):
        before, after = int(pattern.frame_at_step[row, STEP]), int(pattern.frame_at_step[row, STEP + 1])
        _box(axes, (1.4, y), (1.6, 1.0), f"frame {before}", _hue(before), 8)
        axes.text(0.4, y, f"codebook {row}", ha="right", va="center", fontsize=9, color=INK)
        _arrow(axes, (2.25, y), (3.45, y))
        _box(axes, (4.6, y), (2.2, 1.0), f"embedding {row}", PALE, 9)
        _arrow(axes, (5.8, y), (7.05, 2.95 + 0.12 * (1.5 - row)))
        _arrow(axes, (13.5, 2.95 + 0.3 * (1.5 - row)), (14.9, y))
        _box(axes, (15.9, y), (1.8, 1.0), f"head {row}", PALE, 9)
        _arrow(axes, (16.9, y), (18.6, y))
        axes.text(17.75, y + 0.16, "sample", ha="center", va="bottom", fontsize=8, color=INK)
        _box(axes, (19.6, y), (1.6, 1.0), f"frame {after}", _hue(after), 8)
    axes.text(1.4, 6.3, f"codes of step {STEP}", ha="center", fontsize=10, color=INK)
    axes.text(19.6, 6.3, f"codes of step {STEP + 1}", ha="center", fontsize=10, color=INK)
    _box(axes, (7.5, 2.95), (0.8, 0.8), "+", "white", 14)
    _arrow(axes, (7.95, 2.95), (8.9, 2.95))
    _box(axes, (11.2, 2.95), (4.4, 2.6), "transformer\n(attends to all earlier steps)", "#dfe8f5", 10)
    _box(axes, (11.7, 6.4), (2.0, 0.9), "text", "#f5e6d3", 9)
    _arrow(axes, (11.7, 5.9), (11.7, 4.35))
    axes.text(11.9, 5.1, "cross-attention", ha="left", va="center", fontsize=8, color=INK)
    _box(axes, (7.5, 6.4), (5.0, 0.9), "tempo, key, chords, melody", "#f5e6d3", 9)
    _arrow(axes, (7.5, 5.9), (7.5, 3.4))
    back = FancyArrowPatch((19.6, 0.1), (1.4, 0.1), connectionstyle="arc3,rad=-0.13", arrowstyle="-|>", mutation_scale=12)
    back.set(color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.add_patch(back)
    axes.text(10.5, -0.72, "the sampled codes are the input of the next step", ha="center", va="center", fontsize=9, color=INK)
    _save(figure, folder / "step.png")


PICTURES: dict[str, Callable[[Path], None]] = {
    "patterns": patterns,
    "step": step,
    "tokens": tokens,
    "generated": generated,
    "steered": steered,
}


def _clip() -> Any:
    import cadenza

    return cadenza.load("starter", device="cpu").generate(PROMPT, seconds=SECONDS, seed=SEED)


def _grid(axes: Axes, pattern: Pattern, longest: int) -> None:
    """Draw a cell for each codebook and step: one colour per frame, grey for positions without a code."""
    for row in range(pattern.codebooks):
        for number, frame in enumerate(pattern.frame_at_step[row].tolist()):
            there = 0 <= frame < pattern.frames
            _box(
                axes, (number, row), (0.92, 0.92), str(frame) if there else "", _hue(frame) if there else EMPTY, 9, edge="none"
            )
    axes.set(xlim=(-0.6, longest - 0.4), ylim=(pattern.codebooks - 0.4, -0.6), aspect="equal")
    axes.set_yticks(range(pattern.codebooks), [f"codebook {row}" for row in range(pattern.codebooks)])
    axes.set_xticks(range(len(pattern)))
    axes.tick_params(length=0, labelsize=8, colors=INK)
    axes.spines[:].set_visible(False)


def _hue(frame: int) -> tuple[float, ...]:
    return tuple(code_colors(np.array([[frame]]))[0, 0])


def _box(
    axes: Axes, middle: tuple[float, float], size: tuple[float, float], text: str, colour: Any, font: float, edge: str = INK
) -> None:  # fmt: skip
    corner = (middle[0] - size[0] / 2, middle[1] - size[1] / 2)
    style = "round,pad=0,rounding_size=0.12"
    axes.add_patch(FancyBboxPatch(corner, *size, boxstyle=style, facecolor=colour, edgecolor=edge, linewidth=0.8))
    axes.text(*middle, text, ha="center", va="center", fontsize=font, color=INK)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color=INK, linewidth=0.9, shrinkA=0, shrinkB=0)
    )


def _save(figure: Figure, path: Path) -> None:
    figure.savefig(path)
    _slim(path)


def _slim(path: Path) -> None:
    """Reduce a picture to 64 colours."""
    data = io.BytesIO()
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(data, "png", optimize=True)
    path.write_bytes(data.getvalue())


def main(names: list[str]) -> None:
    FOLDER.mkdir(exist_ok=True)
    for name in names or PICTURES:
        PICTURES[name](FOLDER)
        print(FOLDER / f"{name}.png", (FOLDER / f"{name}.png").stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
