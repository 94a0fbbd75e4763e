"""Tags become prompts: every tag that names something with a box is whole in exactly one prompt, and no other is."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.errors import UserError
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Shard, Tag
from pad_pipeline.stages.box_stage import load_unboxable
from pad_pipeline.stages.ground import Detector, DetectorSettings
from pad_pipeline.stages.spans import CLS, DOT, SEP, build_prompts, normalize
from pad_pipeline.workflows.models.settings import ModelSettings
from tests.conftest import record, shared
from tests.stages.detector import DECODING, TWO, encode


def test_prompt_is_what_the_model_expects() -> None:
    """[CLS] cat . dog . [SEP], the closing dot included; without it the last tag is read wrongly."""
    (prompt,) = build_prompts(["Cat", "dog."], encode)
    assert prompt.ids == [CLS, *encode("cat"), DOT, *encode("dog"), DOT, SEP]
    assert [prompt.ids[start:end] for start, end in prompt.spans] == [encode("cat"), encode("dog")]
    assert build_prompts([], encode) == []
    assert build_prompts([" . ", ""], encode) == []


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.text("abcdefgh .?'-", max_size=24), max_size=60),
    st.integers(16, 64),
)
def test_every_tag_is_whole_in_exactly_one_prompt(tags: list[str], max_tokens: int) -> None:
    """No label can be empty, merged, cut or lost, whatever the tags: 256 tokens silently dropped the tail upstream."""
    prompts = build_prompts(tags, encode, max_tokens)
    usable = dict.fromkeys(
        tuple(encode(normalize(tag))) for tag in tags if 0 < len(encode(normalize(tag))) <= max_tokens - 3
    )
    found = [tuple(prompt.ids[start:end]) for prompt in prompts for start, end in prompt.spans]
    assert found == list(usable)
    for prompt in prompts:
        assert len(prompt.ids) <= max_tokens
        assert (prompt.ids[0], prompt.ids[-2], prompt.ids[-1]) == (CLS, DOT, SEP)
        assert all(prompt.ids[end] == DOT for _, end in prompt.spans)
        assert all(encode(normalize(tag)) for tag in prompt.tags)


def test_prompts_are_balanced() -> None:
    """Three full prompts and one tag left over would give that tag far higher scores than the rest."""
    prompts = build_prompts([f"{letter}{other}aa" for letter in "abcdefgh" for other in "abcdefgh"], encode, 102)
    lengths = [len(prompt.ids) for prompt in prompts]
    assert len(lengths) == 4
    assert max(lengths) - min(lengths) <= 5


def test_real_tags_make_the_ids_that_berts_tokenizer_makes_of_the_whole_text(models: ModelSettings) -> None:
    """Each tag is tokenized alone and once; put together they must be what the model was trained to read."""
    detector = Detector(models.annotator(DetectorSettings), DECODING, TWO)
    tags = ["red house", "car", "roof", "tree", "x-ray"]
    (prompt,) = build_prompts(tags, detector.encode)
    assert prompt.ids == detector.tokenizer(" . ".join(tags) + " .")["input_ids"]


def test_tags_that_name_nothing_boxable_are_not_looked_for(models: ModelSettings, world: World, tmp_path: Path) -> None:
    """A detector asked for "red" or "living room" draws a box around anything; asked in vain, the image is empty."""
    words = load_unboxable("default")
    assert {"red", "sit", "running", "living room", "birthday party", "winter", "black and white"} <= words
    assert not {"dog", "sky", "grass", "church", "person", "kite", "watch", "hand", "water", "swimming pool"} & words
    assert all(word == normalize(word) for word in words)
    row = record(world.images / "scene-00000.png", tags=[Tag(tag, 0.9) for tag in ("Red", "sit", "house", "roof")])
    detector = Detector(models.annotator(DetectorSettings), DECODING, TWO)
    assert [prompt.tags for prompt in detector.prompts(row)] == [["house", "roof"]]
    own = tmp_path / "unboxable.txt"
    own.write_text("# mine\nROOF  # parts\n")
    detector = Detector(models.annotator(DetectorSettings).model_copy(update={"unboxable": str(own)}), DECODING, TWO)
    assert [prompt.tags for prompt in detector.prompts(row)] == [["Red", "sit", "house"]]
    detector = Detector(models.annotator(DetectorSettings).model_copy(update={"unboxable": ""}), DECODING, TWO)
    assert [prompt.tags for prompt in detector.prompts(row)] == [["Red", "sit", "house", "roof"]]
    nothing = record(world.images / "scene-00000.png", tags=[Tag("red", 0.9)])
    more = record(
        world.images / "scene-00001.png",
        tags=[Tag("house", 0.9)],
    )
    Detector(models.annotator(DetectorSettings), DECODING, TWO)(Shard(0, [nothing, more]))
    assert (nothing.status, nothing.regions, [tag.label for tag in nothing.tags]) == ("empty", [], ["red"])
    assert more.status == "ok"
    own.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=r"detector\.unboxable .* one tag a line"):
        Detector(models.annotator(DetectorSettings).model_copy(update={"unboxable": str(own)}), DECODING, TWO)


def test_the_list_of_unboxable_tags_leaves_most_of_rams() -> None:
    """The default must not silence the tagger: of RAM's 4585 tags at least three quarters are looked for."""
    tags = shared("ram/ram_tag_list.txt").read_text().splitlines()
    words = load_unboxable("default")
    left = [tag for tag in tags if normalize(tag) not in words]
    assert 0.75 * len(tags) < len(left) < 0.9 * len(tags)


def test_words_that_the_tokenizer_does_not_know_are_not_looked_for(models: ModelSettings, tmp_path: Path) -> None:
    """All of them are one token, [UNK]: a box for it was labeled with the first, whatever it showed."""
    detector = Detector(models.annotator(DetectorSettings), DECODING, TWO)
    row = ImageRecord("a", "a", key="a", tags=[Tag(tag, 0.9) for tag in ("猫", "house", "犬")])
    assert [prompt.tags for prompt in detector.prompts(row)] == [["house"]]
    (tmp_path / "bom.txt").write_text("\ufeffsky\n", "utf-8")
    assert load_unboxable(str(tmp_path / "bom.txt")) == {"sky"}
