"""Writes a clip while it is being made, and says when the first sound was there."""

import argparse
import time
from pathlib import Path

import soundfile

import cadenza


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompt", default="slow ambient pad in C major")
    parser.add_argument("--model", default="starter")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("stream.wav"))
    given = parser.parse_args()

    system = cadenza.load(given.model)
    codec, begun, made = system.spec.codec, time.perf_counter(), 0
    with soundfile.SoundFile(given.out, "w", codec.sample_rate, codec.channels) as file:
        for chunk in system.stream(given.prompt, seconds=given.seconds, seed=given.seed):
            file.write(chunk.wave[0].T.cpu().numpy())
            made += int(chunk.lengths[0])
            print(f"{time.perf_counter() - begun:6.2f} s: {made / codec.sample_rate:.2f} s of sound")


if __name__ == "__main__":
    main()
