"""The stage captions: it makes tags of the nouns in an image's caption and answers, with a pipeline of spaCy."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.packages import OPTIONAL, installed, not_installed
from pad_pipeline.records import ImageRecord, Tag
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile, fetch_folder, folder_sha256

FILES = ["*.cfg", "*.json", "tokenizer", "*/*", "*/*/*"]
"""The files of a pipeline on the hub. The patterns leave out the wheel, which holds all of them again."""
_UNUSED = ["parser", "senter", "ner", "entity_ruler", "entity_linker", "spancat", "textcat", "textcat_multilabel"]
"""Usual components of a pipeline that neither parts of speech nor lemmas need."""
_LONGEST = 100_000
"""The most characters of an image's texts that are read."""


class CaptionsSettings(StageSettings):
    """Settings of the tags from captions: the pipeline, its language, and the words that become tags."""

    section, paths, on_gpu = "captions", ("model",), False

    model: str = Field(min_length=1)
    """A pipeline of spaCy that knows parts of speech: a local folder, the name of an installed package such as
    `en_core_web_sm`, or a hub name such as `spacy/en_core_web_sm`."""
    revision: str = ""
    """Branch, tag or commit on the hub; empty for its default."""
    language: str = "en"
    """Language of the captions, as the pipeline's `lang` names it. A pipeline of another language is refused."""
    turns: Literal["answers", "all", "none"] = "answers"
    """The turns of a conversation that are read beside the caption. Questions name things that may not be there."""
    adjectives: bool = False
    """Whether adjectives that stand next to a noun belong to its tag: `red bus` instead of `bus`."""
    most_words: int = Field(5, ge=1)
    """The most words of a tag. Longer runs of nouns are lists or slogans, and give no tag."""
    score: float = Field(1.0, ge=0, le=1)
    """Score of a tag that only the texts give. The default, 1, means certain, as for annotations by people."""
    batch_size: int = Field(64, gt=0)
    """Images in one call of the pipeline."""

    def files(self) -> list[ModelFile]:
        """Return the folder of the pipeline."""
        return [ModelFile("captions.model", _place(self.model), revision=self.revision, patterns=FILES)]

    def folder(self) -> Path:
        """Fetch the pipeline, if it is on the hub, and return its folder."""
        folder = fetch_folder("captions.model", _place(self.model), self.revision, FILES)
        if not (folder / "config.cfg").is_file():
            remedy = "name the folder that holds the config.cfg of a pipeline"
            raise UserError("captions.model", self.model, "there is no config.cfg in this folder", remedy)
        return folder

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`."""
        return {"captions": folder_sha256(self.folder(), FILES)}

    def check(self) -> str:
        """See `StageSettings`."""
        meta = load_pipeline(self).meta
        return f"spaCy's {meta['lang']}_{meta['name']} {meta['version']}, language {meta['lang']}"

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> CaptionTags:
        """Make the stage. It computes on the CPU."""
        return CaptionTags(self)


class CaptionTags(Stage[str, Any]):
    """Gives each image the nouns of its texts as tags, beside the tags that a tagger has given or will give."""

    name = "captions"

    def __init__(self, settings: CaptionsSettings) -> None:
        super().__init__()
        self.settings, self.batch_size = settings, settings.batch_size
        self.pipeline = load_pipeline(settings)

    def prepare(self, row: ImageRecord) -> str:
        """Return the caption and the selected turns as one text, a paragraph each, without repetitions."""
        kept = {"answers": ("gpt",), "all": ("gpt", "human"), "none": ()}[self.settings.turns]
        turns = [turn["value"].replace("<image>", " ") for turn in row.conversations if turn["from"] in kept]
        texts = dict.fromkeys(" ".join(text.split()) for text in (row.caption, *turns))
        return "\n\n".join(filter(None, texts))[:_LONGEST]

    def process(self, rows: list[ImageRecord], inputs: list[str]) -> list[Any]:
        """Return the words of each image's texts with their parts of speech and lemmas, a `Doc` of spaCy."""
        return list(self.pipeline.pipe(inputs, batch_size=self.batch_size))

    def finish(self, row: ImageRecord, output: Any) -> None:
        """Add the tags. An image without tags gets the status `empty`; a tagger that runs later can change that."""
        tags = [Tag(name, self.settings.score) for name in names_in(output, self.settings)]
        row.add_tags("captions", tags)
        if len(output.text) == _LONGEST:
            row.note(self.name, f"only the first {_LONGEST:,} characters of its texts are read for tags")
        row.status = "ok" if row.tags else "empty"


def names_in(doc: Any, settings: CaptionsSettings) -> Iterator[str]:
    """Yield the name of each thing in a text: neighboring nouns, the last one in its basic form (`fire hydrants` gives
    `fire hydrant`).

    Args:
        doc: the text, a `Doc` of spaCy with parts of speech.
        settings: the words that become tags.
    """
    parts = {"NOUN", "PROPN"} | ({"ADJ"} if settings.adjectives else set())
    run: list[Any] = []
    for token in [*doc, None]:
        if token is not None and token.pos_ in parts and token.text.isprintable() and not token.is_punct:
            run.append(token)
            continue
        nouns = [index for index, word in enumerate(run) if word.pos_ != "ADJ"]
        if nouns and len(run) <= settings.most_words and any(letter.isalnum() for word in run for letter in word.text):
            words = [word.text if word.pos_ == "PROPN" or word.lemma_[:1].isupper() else word.lower_ for word in run]
            words[nouns[-1]] = run[nouns[-1]].lemma_ or words[nouns[-1]]
            yield " ".join(" ".join(words).split())
        run = []


def load_pipeline(settings: CaptionsSettings) -> Any:
    """Load the pipeline without the components that tags do not need.

    Raises:
        UserError: spaCy is not installed, or the pipeline can't be used, or it is for another language.
    """
    if not installed("spacy"):
        raise UserError("captions.model", settings.model, not_installed("spacy"), OPTIONAL["spacy"].install)
    import spacy

    try:
        pipeline = spacy.load(settings.folder(), exclude=_UNUSED)
        language = pipeline.meta["lang"]
        probe = pipeline("a")
    except UserError:
        raise
    except Exception as error:  # spaCy raises many types: for damaged files, another version, a missing component
        rule = f"spaCy can't load it ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
        raise UserError(
            "captions.model", settings.model, rule, "fetch it again, or name a pipeline for this version of spaCy"
        ) from error
    if language != settings.language:
        remedy = f"set language = {language!r} in the section [captions] if your captions are in that language"
        rule = f"this pipeline is for the language {language!r}, and the captions are in {settings.language!r}"
        raise UserError("captions.model", settings.model, rule, remedy)
    if not probe.has_annotation("POS"):
        rule = "this pipeline does not know parts of speech (POS)"
        raise UserError("captions.model", settings.model, rule, "name a trained one, such as spacy/en_core_web_sm")
    return pipeline


def _place(model: str) -> str:
    """Return the folder of an installed pipeline, or else `model` unchanged."""
    if "/" in model or not installed("spacy") or not model.isidentifier() or not installed(model):
        return model
    import spacy

    package = Path(spacy.util.get_package_path(model))
    return next((str(path.parent) for path in sorted(package.glob(f"{model}-*/config.cfg"))), model)
