"""Tools that read words: a small language model of spaCy, and tokenizers of a few pieces."""

from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors

LEMMAS = {"drums": "drum", "violins": "violin", "choirs": "choir", "was": "be", "played": "play", "singing": "sing"}
PIECES = [*"▁abcdefghijklmnopqrstuvwxyz0123456789,", "▁piano", "▁drums", "▁a", "an", "ing", "▁choir"]


def spacy_model(folder: Path, lemmas: dict[str, str] | None = None) -> Path:
    """A folder with a model of English that knows a few dictionary forms, or none where `lemmas` is empty."""
    import spacy
    from spacy.lookups import Lookups

    language = spacy.blank("en")
    if known := LEMMAS if lemmas is None else lemmas:
        tables = Lookups()
        tables.add_table("lemma_lookup", known)
        language.add_pipe("lemmatizer", config={"mode": "lookup"}).initialize(lookups=tables)  # type: ignore[attr-defined]
    language.to_disk(folder)
    return folder


def spacy_package(folder: Path, name: str = "en_core_web_sm") -> Path:
    """The folder of a package as pip would install spaCy's model `name`, to be put on the path."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("raise AssertionError('a language model is data, not code to run')\n")
    spacy_model(folder / name / f"{name}-3.8.0")
    return folder


def tokenizer_folder(folder: Path) -> Path:
    """A unigram tokenizer as T5 has one: the mark </s> after each text."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [(p, -1.0 / len(p)) for p in PIECES]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder
