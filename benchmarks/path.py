"""Code that one `cadenza generate` executes: files and functions of the package, and work done more than once.

    python benchmarks/path.py            # the table; exit status 1 if a target is missed
    python benchmarks/path.py --files    # also the files, in the order of their first call

Functions are counted with `sys.setprofile`. Those that run while a module is imported do not count.
"""

import argparse
import os
import sys
import tempfile
import threading
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import FrameType
from typing import Any

TARGETS = {  # row of the table -> largest number allowed
    "files": 45,
    "System built": 2,  # the outline on the meta device, and the model
    "CodecLM built": 2,
    "Encodec built": 2,
    "spec reads": 1,
    "request parses": 1,
    "plans": 1,
    "LM steps before the model's first": 0,
}
_COUNTED = {
    "System.__init__": "System built",
    "CodecLM.__init__": "CodecLM built",
    "Encodec.__init__": "Encodec built",
    "Request._as_items": "request parses",
    "plan_within_memory": "plans",
}


@dataclass
class PathRecorder:
    """Profile function that records the functions of the package and counts constructions, reads and LM steps."""

    root: str
    functions: dict[tuple[str, str], int] = field(default_factory=dict)  # (file, qualified name) -> calls
    counts: Counter[str] = field(default_factory=Counter)
    loaded: Any = None  # the system that was loaded
    importing: int = 0  # nested imports of modules of the package

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        if event not in ("call", "return") or not code.co_filename.startswith(self.root):
            return
        if code.co_name == "<module>":
            self.importing += 1 if event == "call" else -1
        elif self.importing or not code.co_flags & CO_OPTIMIZED:
            return
        elif event == "return":
            if code.co_qualname == "System.from_saved":
                self.loaded = arg
        else:
            key = code.co_filename[len(self.root) + 1 :], code.co_qualname
            if key not in self.functions or not frame.f_lasti:
                self.functions[key] = self.functions.get(key, 0) + 1
            self._count(code.co_qualname, frame.f_locals)

    def _count(self, name: str, values: dict[str, Any]) -> None:
        if name in _COUNTED:
            self.counts[_COUNTED[name]] += 1
        elif name == "read_data" and Path(values["path"]).name == "system.json":
            self.counts["spec reads"] += 1
        elif name == "decode_step":  # of generators.codec_lm
            own = self.loaded is not None
            self.counts["LM steps" if own else "LM steps before the model's first"] += 1


def record_path(arguments: list[str]) -> PathRecorder:
    """Run the command line in this process, in a fresh cache folder, and return what it executed."""
    import cadenza
    from cadenza.apps.cli.main import main

    assert cadenza.__file__ is not None
    recorder = PathRecorder(str(Path(cadenza.__file__).parent))
    sys.argv = ["cadenza", *arguments]
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    try:
        with redirect_stdout(sys.stderr):
            main()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return recorder


def table(recorder: PathRecorder) -> dict[str, int]:
    """Return the rows of the table: files, functions, constructions, reads and LM steps."""
    files = {file for file, _ in recorder.functions}
    rows = {"files": len(files), "functions": len(recorder.functions)}
    return rows | {name: recorder.counts[name] for name in [*list(TARGETS)[1:], "LM steps"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="starter", help="a bundled model or a folder")
    parser.add_argument("--files", action="store_true", help="also print the files in the order of their first call")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cadenza-path-") as folder:
        os.environ.pop("CADENZA_CACHE", None)
        os.environ["XDG_CACHE_HOME"] = folder
        command = ["generate", "slow piano", "--seconds", "1", "--seed", "1", "--out", f"{folder}/out.wav"]
        recorder = record_path([*command, "--model", options.model])
    rows = table(recorder)
    missed = [name for name, limit in TARGETS.items() if rows[name] > limit]
    for name, number in rows.items():
        limit = f"  (target: at most {TARGETS[name]}{', missed' if name in missed else ''})" if name in TARGETS else ""
        print(f"{name:<34} {number:>5}{limit}")
    if options.files:
        calls = Counter[str]()
        for (file, _), number in recorder.functions.items():
            calls[file] += number
        for file in dict.fromkeys(file for file, _ in recorder.functions):
            names = [name for other, name in recorder.functions if other == file]
            print(f"{calls[file]:>7}  {file}: {', '.join(names)}")
    sys.exit(1 if missed or not rows["LM steps"] else 0)


if __name__ == "__main__":
    main()
