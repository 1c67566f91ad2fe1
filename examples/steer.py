"""One sentence and one seed in several keys and tempi, as files: what a control changes, all else equal."""

import argparse
from pathlib import Path

import cadenza


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="gentle solo piano")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("steered"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)

    system = cadenza.load(given.model)
    controls = [{}, {"key": "C major"}, {"key": "A minor"}, {"tempo": 70}, {"tempo": 140}]
    items = [{"prompt": given.prompt, **control} for control in controls]
    clips = system.generate(items, seconds=given.seconds, seed=given.seed)  # one batch, the same seed for each item
    for control, clip in zip(controls, clips, strict=True):
        name = " ".join(str(value) for value in control.values()) or "free"
        (path,) = clip.save(given.out / f"{name}.wav")
        print(path)


if __name__ == "__main__":
    main()
