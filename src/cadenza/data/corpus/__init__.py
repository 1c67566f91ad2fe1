"""A procedural corpus: short pieces composed by rule and rendered with exact labels."""

from .build import Corpus, CorpusReport, build, recaption
from .instruments import FAMILIES
from .vocabulary import Split

__all__ = ["FAMILIES", "Corpus", "CorpusReport", "Split", "build", "recaption"]
