"""Tags from captions: the nouns of the texts, by real pipelines of spaCy that are made here, alone or with a tagger."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import spacy
from huggingface_hub.utils import filter_repo_objects
from spacy.tokens import Doc
from spacy.training import Example

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Shard, Tag
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.stages import captions
from pad_pipeline.stages.captions import FILES, CaptionsSettings
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.workflows.models.settings import load_models

Pad = Callable[..., Any]

WORDS = {
    "NOUN": "dog dogs:dog fire hydrant hydrants:hydrant man bus ball balls:ball tree trees:tree house wall sky car",
    "ADJ": "red white big",
    "PROPN": "Paris",
    "DET": "a the",
    "ADP": "on in of",
}
"""Part of speech -> words; behind a colon the lemma of a plural."""


def write_rules(folder: Path) -> Path:
    """Write a pipeline that knows the part of speech of `WORDS`, and of no other word."""
    pipeline = spacy.blank("en")
    rules: Any = pipeline.add_pipe("attribute_ruler")
    rules.add([[{}]], {"POS": "X"})
    for part, words in WORDS.items():
        for word, _, lemma in (word.partition(":") for word in words.split()):
            rules.add([[{"LOWER": word.lower()}]], {"POS": part, "LEMMA": lemma or word})
    pipeline.meta |= {"name": "rules", "version": "1.0"}
    pipeline.to_disk(folder)
    return folder


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rules(tmp_path_factory.mktemp("spacy") / "rules")


def tags_of(row: ImageRecord, **settings: Any) -> list[str]:
    stage = CaptionsSettings(**settings).make(DecodeSettings(), ComputeSettings())
    stage(Shard(0, [row]))
    assert row.status != "failed", row.reason
    return [tag.label for tag in row.tags]


def texts(caption: str, question: str = "", answer: str = "") -> ImageRecord:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}] if answer else []
    return ImageRecord("a", "a.png", key="a", caption=caption, conversations=turns)


@pytest.mark.parametrize(
    ("caption", "settings", "expected"),
    [
        ("Fire hydrants on a wall.", {}, ["fire hydrant", "wall"]),
        ("The big red bus, in Paris", {}, ["bus", "Paris"]),
        ("The big red bus, in Paris", {"adjectives": True}, ["big red bus", "Paris"]),
        ("a DOG and two dogs", {}, ["dog"]),
        ("it is red", {"adjectives": True}, []),
        ("", {}, []),
        ("dog bus ball tree house wall", {}, []),
        ("dog bus ball tree house wall", {"most_words": 6}, ["dog bus ball tree house wall"]),
    ],
)
def test_nouns_become_tags(rules: Path, caption: str, settings: dict[str, Any], expected: list[str]) -> None:
    """Catches a plural that becomes a label of its own, a name that is cut at a space, and a tag without a noun."""
    row = texts(caption)
    assert tags_of(row, model=str(rules), **settings) == expected
    assert all((tag.score, tag.sources) == (1.0, ["captions"]) for tag in row.tags)
    assert row.status == ("ok" if expected else "empty")


def test_a_text_that_is_too_long_is_cut_and_said(rules: Path) -> None:
    """Catches tags that are missing without a word, because a text was cut."""
    row, whole = texts("a dog " * 20_000 + "a bus"), texts("a dog and a bus")
    assert tags_of(row, model=str(rules)) == ["dog"] and tags_of(whole, model=str(rules)) == ["dog", "bus"]
    assert (row.stage, row.reason, row.status) == (
        "captions", "only the first 100,000 characters of its texts are read for tags", "ok"
    )  # fmt: skip
    assert not whole.reason


def test_questions_are_read_only_where_the_user_wants_them(rules: Path) -> None:
    """Catches a box for a car that a question asks for in vain."""
    for turns, expected in (("answers", ["dog", "tree"]), ("all", ["dog", "car", "tree"]), ("none", ["dog"])):
        row = texts("a dog", "<image>\nIs there a car?", "No, a tree.")
        assert tags_of(row, model=str(rules), turns=turns) == expected


@pytest.mark.parametrize("captions_first", [True, False])
def test_each_tag_keeps_its_sources_and_the_taggers_score(captions_first: bool) -> None:
    """Catches a union that depends on the order of the stages, and a score that is sometimes a probability and
    sometimes not; and that captions which are read again leave old tags behind."""
    row = texts("")
    given = {
        "captions": [Tag("dog", 1.0), Tag("bus", 1.0), Tag("bus", 1.0)],
        "tagger": [Tag("tree", 0.6), Tag("Dog", 0.7)],
    }
    for source in sorted(given, reverse=not captions_first):
        row.add_tags(source, given[source])
    both = [("tree", 0.6, ["tagger"]), ("Dog", 0.7, ["tagger", "captions"]), ("bus", 1.0, ["captions"])]
    assert [(tag.label, tag.score, tag.sources) for tag in row.tags] == both
    row.forget("captions")
    assert [asdict(tag) for tag in row.tags] == [
        {"label": "tree", "score": 0.6, "sources": ["tagger"]},
        {"label": "Dog", "score": 0.7, "sources": ["tagger"]},
    ]


def test_a_trained_pipeline_gives_the_nouns(tmp_path: Path) -> None:
    """Catches a component that the parts of speech need and that is left out at loading. The training is seeded, and
    the words of the tested captions were seen, in other sentences."""
    random.seed(0)
    spacy.util.fix_random_seed(0)
    pipeline = spacy.blank("en")
    vectors: Any = pipeline.add_pipe("tok2vec")
    assert vectors
    pipeline.add_pipe(
        "morphologizer",
        config={
            "model": {
                "@architectures": "spacy.Tagger.v2",
                "tok2vec": {"@architectures": "spacy.Tok2VecListener.v1", "width": 96, "upstream": "*"},
            }
        },
    )
    pipeline.add_pipe("ner").add_label("THING")  # type: ignore[attr-defined]
    kinds = {part: [word.partition(":")[0] for word in words.split()] for part, words in WORDS.items()}

    def example(frame: str) -> Example:
        parts = frame.split()
        words = [random.choice(kinds[part]) if part in kinds else part for part in parts]
        doc = Doc(pipeline.vocab, words=words, pos=[part if part in kinds else "X" for part in parts])
        return Example(pipeline.make_doc(" ".join(words)), doc)

    frames = ["DET NOUN ADP DET ADJ NOUN", "DET ADJ ADJ NOUN ADP PROPN", "NOUN ADP DET NOUN and DET NOUN"]
    examples = [example(frame) for frame in frames * 30]
    optimizer = pipeline.initialize(lambda: examples)
    for _ in range(12):
        pipeline.update(examples, sgd=optimizer, exclude=["ner"])
    pipeline.meta |= {"name": "trained", "version": "1.0"}
    pipeline.to_disk(tmp_path / "trained")
    settings = CaptionsSettings(model=str(tmp_path / "trained"))
    assert captions.load_pipeline(settings).pipe_names == ["tok2vec", "morphologizer"]
    assert settings.check() == "spaCy's en_trained 1.0, language en"
    assert tags_of(texts("a dog on the big wall and a bus"), model=settings.model) == ["dog", "wall", "bus"]


def test_the_hubs_copy_of_a_pipeline_is_fetched_without_its_wheel(rules: Path) -> None:
    """Catches a part of a pipeline that a fetch leaves out, so that it can't be loaded."""
    names = [path.relative_to(rules).as_posix() for path in rules.rglob("*") if path.is_file()]
    names += ["lemmatizer/lookups/lookups.bin", "tagger/model"]
    extra = ["en_core_web_sm-any-py3-none-any.whl", ".gitattributes", "README.md"]
    assert set(filter_repo_objects([*names, *extra], allow_patterns=FILES)) == set(names)
    first = CaptionsSettings(model=str(rules)).fingerprints()
    assert {*first} == {"captions"}


def test_a_changed_part_of_a_pipeline_changes_its_fingerprint(tmp_path: Path) -> None:
    """Catches a run that goes on with another pipeline, because the changed file lies in a folder of the folder."""
    folder = write_rules(tmp_path / "rules")
    settings = CaptionsSettings(model=str(folder))
    before = settings.fingerprints()
    patterns = folder / "attribute_ruler/patterns"
    patterns.write_bytes(patterns.read_bytes() + b" ")
    assert settings.fingerprints() != before


def test_a_pipeline_that_does_not_fit_is_refused(rules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches hours of annotation with tags of the wrong language, or with none."""
    spacy.blank("en").to_disk(tmp_path / "blank")
    broken = write_rules(tmp_path / "broken")
    (broken / "attribute_ruler/patterns").write_bytes(b"\xc1")
    (tmp_path / "nothing").mkdir()
    cases: list[tuple[dict[str, str], str]] = [
        ({"model": str(rules), "language": "de"}, "pipeline is for the language 'en', and the captions are in 'de'"),
        ({"model": str(tmp_path / "blank")}, "does not know parts of speech"),
        ({"model": str(broken)}, "spaCy can't load it"),
        ({"model": str(tmp_path / "nothing")}, "there is no config.cfg in this folder"),
        ({"model": "en_core_web_none"}, "neither a folder nor a hub name"),
    ]
    for settings, rule in cases:
        with pytest.raises(UserError, match=rule) as error:
            CaptionsSettings.model_validate(settings).check()
        assert error.value.field == "captions.model"
    monkeypatch.setattr(captions, "installed", lambda name: False)
    with pytest.raises(UserError, match=r"spacy is not installed; pip install 'pad-pipeline\[spacy\]'"):
        CaptionsSettings(model=str(rules)).check()


def test_captions_replace_or_complete_a_preset_tagger(tmp_path: Path) -> None:
    """Catches a section that drops RAM without a word, or a build for which nobody gives tags."""

    def sections(text: str) -> list[str]:
        (tmp_path / "models.toml").write_text(text)
        return [one.section for one in load_models(str(tmp_path / "models.toml")).annotators]

    section = '[captions]\nmodel = "spacy/en_core_web_sm"\n'
    assert sections(f'preset = "paper"\n{section}') == ["tagger", "captions", "detector", "segmenter"]
    assert sections(f'preset = "paper"\ntagger = false\n{section}') == ["captions", "detector", "segmenter"]
    with pytest.raises(UserError, match="section tagger or captions is missing"):
        sections('preset = "paper"\ntagger = false\n')
    with pytest.raises(UserError, match="both do the step captions"):
        sections(f'preset = "paper"\n{section}[grounder]\nclass = "tests.own_models:Grounder"\n')


def metas(folder: Path) -> dict[str, Any]:
    shards = open_shards(folder)
    return {row["id"]: shards.sample(name, row).meta for name, row in shards.rows()}


def test_captions_steer_a_build_and_can_be_added_to_an_earlier_one(
    pad: Pad, world: World, rules: Path, models_toml: Path, tmp_path: Path
) -> None:
    """Catches tags of captions that a detector is never asked for, that lose the tagger's, or that a run without
    captions silently has not; and a later `--redo-from captions` that gives other tags than a build at once."""
    both, alone = (models_toml.with_name(f"{name}.toml") for name in ("both", "alone"))
    text = f'{models_toml.read_text()}\n[captions]\nmodel = "{rules}"\n'
    both.write_text(text)
    alone.write_text("\n[".join(part for part in f"\n{text}".split("\n[") if not part.startswith("tagger]")))
    lists = ["--images", world.llava, "--image-root", world.images]
    common = ["--view-size", 112, "--limit", 4, "--engine", "local"]
    assert pad("build", *lists, *common, "--models", both, "--out", tmp_path / "both").code == 0
    assert pad("build", *lists, *common, "--models", alone, "--out", tmp_path / "alone").code == 0
    assert pad("build", *lists, *common, "--models", models_toml, "--out", tmp_path / "plain").code == 0
    redo = ["--images", tmp_path / "plain", "--redo-from", "captions", "--engine", "local", "--view-size", 112]
    assert pad("build", *redo, "--models", both, "--out", tmp_path / "later").code == 0
    at_once, plain, later, named = (metas(tmp_path / name) for name in ("both", "plain", "later", "alone"))
    assert [meta["tags"] for meta in at_once.values()] == [meta["tags"] for meta in later.values()]
    assert [meta["regions"] for meta in at_once.values()] == [meta["regions"] for meta in later.values()]
    for image, meta in at_once.items():
        from_captions = {tag["label"] for tag in meta["tags"] if "captions" in tag["sources"]}
        assert from_captions == {tag["label"] for tag in named[image]["tags"]}
        assert all(name in meta["caption"] for name in from_captions)
        tagged = [(tag["label"], tag["score"]) for tag in meta["tags"] if "tagger" in tag["sources"]]
        assert tagged == [(tag["label"], tag["score"]) for tag in plain[image]["tags"]]
    assert any("captions" in tag["sources"] for meta in at_once.values() for tag in meta["tags"])
    assert {region["label"] for meta in named.values() for region in meta["regions"]} <= {
        tag["label"] for meta in named.values() for tag in meta["tags"]
    }
    run = json.loads((tmp_path / "both/run.json").read_text())
    assert run["settings"]["captions"]["language"] == "en" and len(run["fingerprints"]["captions"]) == 64
    assert "  from captions" in pad("stats", tmp_path / "both").out.replace("│", "")
    forgotten = pad("build", *redo, "--models", models_toml, "--out", tmp_path / "forgotten")
    assert forgotten.code == 2 and "has no section [captions], which does this step" in forgotten.err
    refused = pad("build", "--images", world.images, *common, "--models", both, "--out", tmp_path / "refused")
    assert refused.code == 2 and "none of its images has a caption or a conversation" in refused.err
