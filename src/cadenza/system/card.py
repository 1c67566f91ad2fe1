"""Card: who made the weights of a system and under which licence; kept by every save."""

from pathlib import Path

import yaml

from cadenza.core.errors import CheckpointError
from cadenza.core.spec import Spec

FILE = "README.md"


class ModelCard(Spec):
    """The front matter of a model card, and its text."""

    name: str = "unnamed"
    license: str = "unknown"  # SPDX id of the weights' licence, which may differ from the code's
    summary: str = ""
    notice: str = ""  # where the weights come from, what they may be used for

    def to_markdown(self) -> str:
        front = {"name": self.name, "license": self.license, "library_name": "cadenza", "pipeline_tag": "text-to-audio"}
        head = yaml.safe_dump({**front, "summary": self.summary}, sort_keys=False, allow_unicode=True)
        return f"---\n{head}---\n\n# {self.name}\n\n{self.summary}\n\n{self.notice}\n"

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelCard":
        """The card in a system's folder; an unnamed one of unknown licence where there is none."""
        path = folder / FILE
        if not path.exists():
            return cls(name=folder.name)
        _, head, text = [*path.read_text().split("---\n", 2), "", ""][:3]
        try:
            front = yaml.safe_load(head) or {}
            if not isinstance(front, dict):
                raise yaml.YAMLError("not a mapping")
        except yaml.YAMLError as error:
            raise CheckpointError(f"{path}: the front matter is not YAML ({error}); mend or remove the file") from None
        known = {name: str(front[name]) for name in ("name", "license", "summary") if name in front}
        body = text.strip().removeprefix(f"# {known.get('name', '')}").strip().removeprefix(known.get("summary", ""))
        return cls(**known, notice=body.strip())
