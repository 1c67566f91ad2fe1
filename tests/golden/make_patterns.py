"""Makes patterns.json: the entries of kit case 10, one a line. Usage: make_patterns.py KIT_FOLDER"""

import json
import sys
from pathlib import Path


def main(kit: Path) -> None:
    entries = json.loads((kit / "10_audiocraft_patterns" / "patterns.json").read_text())
    lines = [json.dumps(entry, separators=(",", ":")) for entry in entries]
    Path(__file__).with_name("patterns.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
