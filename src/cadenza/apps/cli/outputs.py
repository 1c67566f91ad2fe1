"""Names of output files, and the tags written into them."""

import re
import string
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cadenza import __version__
from cadenza.core.errors import AudioError

if TYPE_CHECKING:
    from cadenza.system.store import ModelCard

FIELDS = ("index", "seed", "prompt")
TITLE = 200  # characters of a prompt that go into a tag
SLUG = 40  # and into a file's name


def output_paths(out: str, titles: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Return a path for each clip: `out` with its fields replaced, or numbered `out-1`, `out-2`, ...; raise AudioError."""
    _known(out)
    if any(f"{{{name}" in out for name in FIELDS):
        found = [
            Path(out.format(index=i, seed=seed, prompt=_slug(title)))
            for i, (title, seed) in enumerate(zip(titles, seeds, strict=True), 1)
        ]
        if len(set(found)) < len(found):
            raise AudioError(
                f"{out}: {len(found)} clips would share {len(set(found))} names; add {{index}} or {{seed}} to --out"
            )
    else:
        path = Path(out)
        found = [path] if len(seeds) == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(seeds))]
    for folder in {path.parent for path in found}:
        _writable(folder, out)
    return found


def file_tags(title: str, seed: int, card: "ModelCard") -> dict[str, str]:
    """Return the text tags of a file: prompt, model, seed, and licence of the weights."""
    comment = f"model {card.name}; seed {seed}; weights under {card.license}"
    return {"title": title[:TITLE], "software": f"Cadenza {__version__}", "comment": comment, "license": card.license}


def _known(out: str) -> None:
    """Raise AudioError for an unknown field or format."""
    from cadenza.dsp.audio_io import FORMATS

    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(out) if name is not None]
    except ValueError as error:
        raise AudioError(f"{out}: not a valid file name pattern: {error}") from None
    if unknown := [name for name in fields if name not in FIELDS]:
        raise AudioError(f"{out}: unknown field {{{unknown[0]}}}; there are " + ", ".join(f"{{{name}}}" for name in FIELDS))
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{out}: unknown kind of file '{path.suffix}'; choose from {', '.join(FORMATS)}")
    if path.is_dir():
        raise AudioError(f"{out} is a folder; give the name of a file")


def _writable(folder: Path, out: str) -> None:
    """Raise AudioError if no file can be written in a folder."""
    if not folder.is_dir():
        raise AudioError(f"{out}: there is no folder '{folder}'; make it first, or choose another place with --out")
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise AudioError(f"{out}: cannot write there ({error.strerror}); choose another folder with --out") from None


def _slug(title: str) -> str:
    """Return a title as part of a file name."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")[:SLUG].strip("-") or "untitled"
