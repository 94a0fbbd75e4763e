"""One rule for all sources: what id, path, caption, conversation and image mean, and nothing lost in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pad_pipeline.plan import write_plan
from pad_pipeline.records import Planned
from pad_pipeline.sources.base import Tally
from pad_pipeline.sources.coco import CocoSource
from pad_pipeline.sources.conversations import read_conversations
from pad_pipeline.sources.open import open_source
from pad_pipeline.sources.read import read_bytes
from tests.sources.small_sources import LISTS, MOST, brief, error_of, png, write_list, write_tar

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]


def write_records(path: Path, records: list[Any]) -> str:
    path.write_text(json.dumps(records))
    return str(path)


@settings(deadline=None, max_examples=20)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters='\r\n\t\0"\ufeff'), max_size=8), min_size=1, max_size=5
    )
)
def test_every_form_gives_the_same_images(tmp_path_factory: pytest.TempPathFactory, captions: list[str]) -> None:
    """A set of images with captions, written in every form: the same ids, captions and bytes. Catches a form with a
    rule of its own."""
    home = tmp_path_factory.mktemp("forms")
    captions = [caption.strip() for caption in captions]
    names = [f"n{number}.png" for number in range(len(captions))]
    contents = [png(number) for number in range(len(captions))]
    for name, content in zip(names, contents, strict=True):
        (home / name).write_bytes(content)
    rows = [{"image": name, "caption": caption} for name, caption in zip(names, captions, strict=True)]
    turns = [[{"from": "gpt", "value": caption}] for caption in captions]
    roles = [[{"role": "user", "content": "?"}, {"role": "assistant", "content": caption}] for caption in captions]
    with_turns = [{"image": name, "conversations": one} for name, one in zip(names, turns, strict=True)]
    with_roles = [{"image": name, "messages": one} for name, one in zip(names, roles, strict=True)]
    images = [{"bytes": content, "path": name} for name, content in zip(names, contents, strict=True)]
    pq.write_table(pa.table({"image": images, "caption": captions}), home / "bytes.parquet")
    pairs = [[{"user": "?", "assistant": caption}] for caption in captions]
    pq.write_table(pa.table({"images": [[one] for one in images], "texts": pairs}), home / "lists.parquet")
    members = [(name, content) for name, content in zip(names, contents, strict=True)]
    texts = [(f"{name[:-4]}.txt", caption.encode()) for name, caption in zip(names, captions, strict=True)]
    said = [(f"{name[:-4]}.json", json.dumps(one).encode()) for name, one in zip(names, turns, strict=True)]
    entries = [{"id": number, "file_name": name} for number, name in enumerate(names)]
    noted = [{"id": number, "image_id": str(number), "caption": one} for number, one in enumerate(captions) if one]
    coco = home / "coco.json"
    coco.write_text(json.dumps({"images": entries, "annotations": noted}))
    sources = [
        open_source(write_records(home / "plain.json", rows)),
        open_source(write_records(home / "lists.json", [row | {"image": [row["image"]]} for row in rows])),
        open_source(write_records(home / "below.json", [row | {"image": str(home / row["image"])} for row in rows])),
        open_source(write_records(home / "turns.json", with_turns)),
        open_source(write_records(home / "roles.json", with_roles)),
        *(open_source(write_list(home / f"list.{kind}", rows)) for kind in LISTS),
        open_source(home / "bytes.parquet"),
        open_source(home / "lists.parquet"),
        open_source(write_tar(home / "text.tar", members + texts)),
        open_source(write_tar(home / "json.tar", members + said)),
        CocoSource(coco, home),
    ]  # fmt: skip
    for source in sources:
        planned = list(source)
        found = [(one.id, one.caption, read_bytes(source.root, _place(one), MOST)) for one in planned]
        assert found == [*zip([name[:-4] for name in names], captions, contents, strict=True)], source.origin
        assert not [one.problem for one in planned if one.problem]


def _place(planned: Planned) -> Any:
    return planned.place if planned.place.file else planned.place._replace(file=planned.source)


def test_ids_that_mean_the_same_are_the_same(tmp_path: Path) -> None:
    """Catches human annotations that match no image because a tool wrote "0" or 0.0 for 0."""
    images = [{"id": 0, "file_name": "a.png"}, {"id": "1", "file_name": "b.png"}, {"id": 2.0, "file_name": "c.png"}]
    boxes = [
        {"id": n, "image_id": image, "category_id": category, "bbox": [0, 0, 1, 1]}
        for n, (image, category) in enumerate([("0", 1), (1, "1"), ("2", 1.0), (0.0, "1.0")])
    ]
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "dog"}]}))
    assert [len(one.annotations) for one in CocoSource(path, tmp_path)] == [2, 1, 1]
    rows = [{"image": f"{n}.png", "id": value} for n, value in enumerate([7, 7.0, "7", "7.0", 7.5])]
    assert [one.id for one in open_source(write_records(tmp_path / "l.json", rows))] == ["7", "7", "7", "7", "7.5"]


@pytest.mark.parametrize("kind", ["json", *LISTS])
def test_a_backslash_separates_folders_where_that_finds_the_file(tmp_path: Path, kind: str) -> None:
    """Catches a list from Windows of which no image is there, and a file whose name holds a backslash."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train/a.png").write_bytes(png())
    (tmp_path / "odd\\b.png").write_bytes(png())
    rows = [{"image": "train\\a.png", "id": "a"}, {"image": "odd\\b.png", "id": "b"}, {"image": "no\\c.png", "id": "c"}]
    write = write_records if kind == "json" else write_list
    source = open_source(write(tmp_path / f"list.{kind}", rows))
    assert [one.source for one in source] == ["train/a.png", "odd\\b.png", "no\\c.png"]
    assert source.counts == {"paths with \\ in the place of /": 1}


def test_several_images_are_annotated_without_their_texts(tmp_path: Path) -> None:
    """Catches an answer about two images that becomes the caption of one, and images that are lost without a word."""
    rows = [{"id": "x", "image": ["a.png", "b.png"], "conversations": TURNS}, {"image": ["c.png"], "caption": "c"}]
    source = open_source(write_records(tmp_path / "list.json", rows))
    assert [(one.id, one.source, one.caption, len(one.conversations)) for one in source] == [
        ("x-0", "a.png", "", 0), ("x-1", "b.png", "", 0), ("c", "c.png", "c", 0),
    ]  # fmt: skip
    assert source.counts == {"records with several images, which are annotated without their texts": 1}
    assert source.counts.examples.popitem()[1] == "record 0"


@pytest.mark.parametrize(
    "value",
    [
        TURNS,
        json.dumps(TURNS),
        [{"role": "user", "content": "<image>\nWhat?"}, {"role": "assistant", "content": "A dog."}],
        [{"from": "user", "value": "<image>\nWhat?"}, {"from": "assistant", "value": "A dog."}],
        [{"user": "<image>\nWhat?", "assistant": "A dog."}],
        [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
         {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]}],
        {"from": ["human", "gpt"], "value": ["<image>\nWhat?", "A dog."]},
        [TURNS],
    ],
    ids=["llava", "json", "roles", "user", "pairs", "parts", "columns", "nested"],
)  # fmt: skip
def test_conversations_of_every_form_are_the_same(value: Any) -> None:
    """Catches a chat format of a public data set whose answers are lost."""
    assert read_conversations(value) == TURNS


@pytest.mark.parametrize(
    "name", ["vlm_caption", "recaption", "original_caption", "Caption", "captions", "blip_caption"]
)
def test_captions_of_public_sets_are_found(tmp_path: Path, name: str) -> None:
    """Catches captions that are empty because their column has another name."""
    for kind in LISTS:
        source = open_source(write_list(tmp_path / f"list.{kind}", [{"image": "a.png", name: "a dog"}]))
        assert list(map(brief, source)) == [("a", "a.png", "a dog")], kind


@pytest.mark.parametrize("kind", LISTS)
def test_other_texts_are_known_where_no_caption_is_found(tmp_path: Path, kind: str) -> None:
    """Catches a build without captions whose user is told nothing of the column that holds them."""
    source = open_source(write_list(tmp_path / f"list.{kind}", [{"image": "a.png", "what_is_seen": "a dog"}]))
    assert [one.caption for one in source] == [""]
    assert list(source.counts.other_texts) == ["what_is_seen"]


def test_a_plan_counts_captions_and_kinds_of_problems(tmp_path: Path) -> None:
    """Catches problems that are counted one by one because each names its record."""
    rows = [{"image": "a.png", "caption": "a"}, {"image": "b.png", "conversations": TURNS}]
    rows += [{"image": {}, "id": str(number)} for number in range(3)]
    facts = write_plan(open_source(write_records(tmp_path / "l.json", rows)), tmp_path / "plan.parquet", 8)
    assert (facts.images, facts.captions, facts.conversations) == (5, 2, 1)
    assert facts.problems == {"image is an object, and should be a path, a URL, or a list of them": 3}
    assert facts.problems.examples.popitem()[1].startswith("record 2: ")


def test_lines_are_read_whatever_the_ending(tmp_path: Path) -> None:
    """Catches JSON lines in a .json, and a list in a .jsonl, that are refused though they can be read."""
    record = {"id": "7", "image": "a.png", "conversations": TURNS}
    (tmp_path / "lines.json").write_text(f"{json.dumps(record)}\n" * 2)
    write_records(tmp_path / "list.jsonl", [record, record])
    for name in ("lines.json", "list.jsonl"):
        assert list(map(brief, open_source(tmp_path / name))) == [("7", "a.png", "A dog.")] * 2
    (tmp_path / "coco.json").write_text(json.dumps({"images": [], "annotations": []}))
    assert "`pad import coco`" in error_of(tmp_path / "coco.json")


def test_a_tsv_has_no_quotes(tmp_path: Path) -> None:
    """Catches a caption that begins with a quote and swallows the rows after it."""
    (tmp_path / "l.tsv").write_text('caption\timage\n"A cat" on a mat\ta.png\n"\tb.png\n"open\tc.png\n')
    assert [one.caption for one in open_source(tmp_path / "l.tsv")] == ['"A cat" on a mat', '"', '"open']


def test_a_list_without_a_header_is_read_by_numbers(tmp_path: Path) -> None:
    """Catches CC3M's files, whose first row would be taken for the names of the columns."""
    (tmp_path / "cc3m.tsv").write_text("a dog\thttps://x/1.jpg\na cat\thttps://x/2.jpg\n")
    planned = list(open_source(tmp_path / "cc3m.tsv", columns={"image": "2", "caption": "1"}))
    assert list(map(brief, planned)) == [("1", "https://x/1.jpg", "a dog"), ("2", "https://x/2.jpg", "a cat")]


def test_a_folder_with_metadata_has_captions(tmp_path: Path) -> None:
    """Catches an image folder of Hugging Face `datasets` whose captions are lost."""
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a dog"}\n')
    assert list(map(brief, open_source(tmp_path))) == [("a", "a.png", "a dog")]


@pytest.mark.parametrize(("written", "read"), [("{root}//a.png", "a.png"), ("HTTPS://h/a.png", "https://h/a.png")])
def test_paths_and_urls_are_read_as_they_are_meant(tmp_path: Path, written: str, read: str) -> None:
    rows = [{"image": written.format(root=tmp_path), "id": "a"}]
    (planned,) = open_source(write_records(tmp_path / "l.json", rows))
    assert (planned.source, planned.problem) == (read, "")


def test_counts_can_be_copied() -> None:
    """Catches counts that can't be copied, as those of a `Counter` can."""
    counts = Tally()
    counts.note("why", "example")
    assert counts.copy() == {"why": 1}


def test_memory_for_reasons_does_not_grow(tmp_path: Path) -> None:
    """Catches a reason for each record, and the names of texts of each record, that are kept for millions of them."""
    rows = [{"image": "a.png", "conversations": [{f"n{number}": 1}], f"t{number}": "x"} for number in range(2000)]
    source = open_source(write_records(tmp_path / "l.json", rows))
    for number in range(2000):
        source.counts.note(f"reason {number}", number)
    assert len(source.counts) <= 501 and source.counts.total() == 2000
    facts = write_plan(source, tmp_path / "plan.parquet", 512)
    assert facts.problems.total() == 2000 and len(facts.problems) == 1
    assert len(source.counts.other_texts) <= 100


@pytest.mark.parametrize("speaker", ["Assistant", "model", "bot", "chatgpt"])
def test_answers_of_every_speaker_are_captions(speaker: str) -> None:
    turns = read_conversations([{"role": "User", "content": "What?"}, {"role": speaker, "content": "A dog."}])
    assert turns == [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A dog."}]


@pytest.mark.parametrize("kind", ["struct", "parquet", "csv", "tsv"])
def test_a_column_json_gives_what_a_row_lacks(tmp_path: Path, kind: str) -> None:
    """The form of WebDataset tars that became Parquet: `__key__`, `jpg`, `txt`, `json`. Catches their captions and
    conversations, which were lost; and what a tar gives, and its table does not."""
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A dog."}]
    facts: list[dict[str, Any]] = [
        {"caption": "c", "url": "http://127.0.0.1/a.jpg", "width": 3}, {"caption": "c"}, {"conversations": turns}, {},
    ]  # fmt: skip
    texts = ["", "own", "", ""]
    members = []
    for number, (text, fact) in enumerate(zip(texts, facts, strict=True)):
        parts = [(f"{number}.json", json.dumps(fact).encode()), (f"{number}.txt", text.encode())]
        members += [(f"{number}.png", png(number)), *parts]
    expected = list(open_source(write_tar(tmp_path / "a.tar", members)))
    rows = [{"__key__": f"{n}", "png": f"{n}.png", "txt": text} for n, text in enumerate(texts)]
    for row, fact in zip(rows, facts, strict=True):
        whole = {"caption": None, "conversations": None, "url": None, "width": None} | fact
        row["json"] = whole if kind == "struct" else json.dumps(fact)  # type: ignore[assignment]
    source = open_source(write_list(tmp_path / f"l.{kind.replace('struct', 'parquet')}", rows))
    assert [(one.id, one.caption, one.conversations) for one in source] == [
        (one.id, one.caption, one.conversations) for one in expected
    ]
    assert [one.caption for one in expected] == ["c", "own", "A dog.", ""]


def test_json_that_can_not_be_read_is_counted(tmp_path: Path) -> None:
    """Catches a broken value that stops the list, one that is lost unsaid, and a column `json` that is no JSON."""
    rows = [
        {"image": f"{n}.png", "json": text} for n, text in enumerate(['{"caption": "c"', "[1]", '{"id": {}}', "{}"])
    ]
    source = open_source(write_list(tmp_path / "a.csv", rows))
    assert [(one.caption, one.problem) for one in source] == [("", "")] * 4
    assert source.counts == {"values of json that can't be read, whose texts are left out": 3}
    write_list(tmp_path / "a.parquet", [{"image": "a.png", "json": 3}])
    assert [one.source for one in open_source(tmp_path / "a.parquet")] == ["a.png"]
    named = write_list(tmp_path / "b.csv", [{"image": "a.png", "json": '{"prompt": "p"}', "text": "t"}])
    assert [one.caption for one in open_source(named, columns={"caption": "prompt"})] == ["p"]
