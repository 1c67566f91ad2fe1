"""A procedural corpus: short pieces composed by rules and rendered with exact labels."""

from .build import Corpus, CorpusReport, build_corpus, rewrite_captions
from .tables import Split

__all__ = ["Corpus", "CorpusReport", "Split", "build_corpus", "rewrite_captions"]
