"""Scores with a known answer, and `pad evaluate` on a trained model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pad_pipeline.evaluation.answers import exact_match
from pad_pipeline.evaluation.boxes import (
    Expression,
    image_to_pixels,
    parse_box,
    read_expressions,
    score_boxes,
    square_to_pixels,
)
from pad_pipeline.evaluation.captions import (
    bleu,
    cider,
    java_scores,
    longest_common,
    ngrams,
    rouge_l,
    score_captions,
    split_words,
)
from pad_pipeline.miniature.files import World

Pad = Callable[..., Any]

# ---------------------------------------------------------------- boxes


def test_the_two_frames_of_wide_and_tall_images() -> None:
    """A perfect LLaVA says shares of the padded square. In that frame it is right; the common harness takes them for
    shares of the original, and sees a wide image's box squeezed to half its height (IoU 30/60) and shifted."""
    wide = Expression("w.jpg", "the car", (50, 20, 150, 80), (200, 100))
    tall = Expression("t.jpg", "the sun", (20, 0, 80, 50), (100, 200))
    square = Expression("s.jpg", "the cat", (10, 20, 30, 60), (100, 100))
    said = ["[0.25, 0.35, 0.75, 0.65]", "It is at [0.35, 0.00, 0.65, 0.25].", "[0.1, 0.2, 0.3, 0.6]"]
    found = score_boxes([wide, tall, square], said)
    assert found["padded"]["accuracy"] == 1 and found["padded"]["mean_iou"] == pytest.approx(1)
    # wide: x right, y 35..65 of 20..80: 1/2. tall: x 35..65 of 20..80, y right: 1/2. square: both frames are one.
    assert found["original"]["mean_iou"] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert found["original"]["curve"]["0.7"] == pytest.approx(1 / 3)
    shifted = score_boxes([Expression("w.jpg", "x", (0, 0, 100, 40), (200, 100))], ["[0.0, 0.25, 0.5, 0.45]"])
    assert shifted["padded"]["mean_iou"] == pytest.approx(1)
    assert shifted["original"]["mean_iou"] == pytest.approx(15 / 45)  # y 25..45 against 0..40


@given(st.integers(1, 700), st.integers(1, 700))
@settings(max_examples=50)
def test_frames_follow_the_image_as_it_is_padded(width: int, height: int) -> None:
    """The whole image's box, said as LLaVA is taught it, is the whole image again; odd differences round down as
    the padding does. Catches x and y exchanged, and half a pixel."""
    edge, left, top = max(width, height), (max(width, height) - width) // 2, (max(width, height) - height) // 2
    said = (left / edge, top / edge, (left + width) / edge, (top + height) / edge)
    assert square_to_pixels(said, (width, height)) == pytest.approx((0, 0, width, height), abs=1e-6)
    assert image_to_pixels((0, 0, 1, 1), (width, height)) == (0, 0, width, height)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("a (.1,.2,.3,.4) b [0, 0, 1, 1]", (0.1, 0.2, 0.3, 0.4)),
        ("[100, 200, 300, 1000]", (0.1, 0.2, 0.3, 1.0)),
        ("[0.3, 0.2, 0.1, 0.4]", None),
        ("[0.1, 0.2, 0.3]", None),
        ("0.1, 0.2, 0.3, 0.4", None),
        ("[0.1, 0.2, 0.3, 0.4", None),
        ("[a, b, c, d]", None),
        ("[0.1.2, 0, 1, 1]", None),
        ("no box", None),
    ],
)
def test_a_box_is_read_from_an_answer(text: str, box: object) -> None:
    """Catches thousandths taken for pixels, and a box turned round that counts."""
    assert parse_box(text) == (None if box is None else pytest.approx(box))


def test_an_answer_without_a_box_is_counted_and_wrong() -> None:
    """Catches answers that are left out of the mean. The interval is that of a share of 100."""
    one = Expression("a.jpg", "x", (0, 0, 10, 10), (10, 10))
    found = score_boxes([one] * 100, ["[0, 0, 1, 1]"] * 50 + ["?"] * 50)
    assert (found["expressions"], found["unparsed"], found["padded"]["accuracy"]) == (100, 50, 0.5)
    low, high = found["padded"]["interval"]
    assert low == pytest.approx(0.402, abs=0.03) and high == pytest.approx(0.598, abs=0.03)


def test_both_kinds_of_files_say_the_same(tmp_path: Path) -> None:
    """MDETR's bbox is x, y, width, height; InternVL's two corners."""
    jsonl, mdetr = tmp_path / "a.jsonl", tmp_path / "a.json"
    entry = {"image": "x/1.jpg", "sent": "the dog", "bbox": [1, 2, 5, 9], "width": 20, "height": 10}
    jsonl.write_text(json.dumps(entry) + "\n\n")
    image = {"id": 4, "file_name": "x/1.jpg", "caption": "the dog", "width": 20, "height": 10}
    mdetr.write_text(json.dumps({"images": [image], "annotations": [{"image_id": 4, "bbox": [1, 2, 4, 7]}]}))
    assert (
        read_expressions(jsonl) == read_expressions(mdetr) == [Expression("x/1.jpg", "the dog", (1, 2, 5, 9), (20, 10))]
    )


# ---------------------------------------------------------------- captions


def test_bleu_of_papinenis_example() -> None:
    """Papineni et al. 2002: seven times "the" against two references has a modified unigram precision of 2/7; candidate
    1 of their first example has 17/18, candidate 2 has 8/14; bigrams 10/17 and 1/13."""
    references = [["the cat is on the mat", "there is a cat on the mat"]]
    split = [[text.split() for text in texts] for texts in references]
    assert bleu([["the"] * 7], split)[0] == pytest.approx(2 / 7)
    three = [
        "It is a guide to action that ensures that the military will forever heed Party commands",
        "It is the guiding principle which guarantees the military forces always being under the command of the Party",
        "It is the practical guide for the army always to heed the directions of the party",
    ]
    first = "It is a guide to action which ensures that the military always obeys the commands of the party"
    second = "It is to insure the troops forever hearing the activity guidebook that party direct"
    for said, unigrams, bigrams in ((first, 17 / 18, 10 / 17), (second, 8 / 14, 1 / 13)):
        words, refs = split_words(said), [[split_words(text) for text in three]]
        brevity = bleu([words], refs)[0] / unigrams
        assert brevity == pytest.approx(min(1, 2.718281828 ** (1 - 16 / len(words))), rel=1e-6)
        assert bleu([words], refs)[1] == pytest.approx(brevity * (unigrams * bigrams) ** 0.5, rel=1e-6)


def test_rouge_of_lins_example() -> None:
    """Lin 2004: against "police killed the gunman", "police kill the gunman" has 3 of 4 words in order, and "the gunman
    kill police" 2 of 4; precision and recall are alike, so F is that share whatever beta is."""
    reference = split_words("police killed the gunman")
    for said, share in (("police kill the gunman", 3 / 4), ("the gunman kill police", 2 / 4)):
        assert rouge_l([said.split()], [[reference]]) == pytest.approx(share)
    assert longest_common(list("abcbdab"), list("bdcaba")) == 4


def test_cider_by_hand() -> None:
    """Two images, a reference each. A caption that is its reference has cosine 1 for each n that has an n-gram: of
    two words n = 1 and 2, so 10 * 2/4 = 5. What both references say weighs nothing (idf 0)."""
    refs = [["red", "car"], ["blue", "house"]]
    assert cider(refs, [[ref] for ref in refs]) == pytest.approx(5)
    shared_word = [["a", "car"], ["a", "house"]]
    assert cider([["a", "car"], ["a", "sun"]], [[ref] for ref in shared_word]) == pytest.approx(2.5)


def test_scores_equal_pycocoevalcap() -> None:
    """The library that COCO's numbers come from, on the same words: to 1e-6."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = ["a red car on the road", "a house", "two dogs play in the snow by a tree", "the the the"]
    refs = [
        ["a red car on a road", "the car"],
        ["a small house stands here"],
        ["dogs in the snow"],
        ["the cat", "a cat"],
    ]
    mine = score_captions(said, refs)
    theirs, ours = dict(enumerate(refs)), {number: [text] for number, text in enumerate(said)}
    known = [*Bleu(4).compute_score(theirs, ours, verbose=0)[0], Rouge().compute_score(theirs, ours)[0]]
    known.append(Cider().compute_score(theirs, ours)[0])
    assert list(mine.values()) == pytest.approx(known, abs=1e-6)


def test_without_java_its_scores_are_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a traceback nor a METEOR of 0."""
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    assert java_scores(["a dog"], [["a dog"]], said.append) == {}
    assert len(said) == 1 and "Java is not installed" in said[0]


@pytest.mark.long
@pytest.mark.skipif(not shutil.which("java"), reason="there is no Java")
def test_meteor_comes_from_java() -> None:
    """Its jar gets words and references in the order that it wants: captions that are the references score 1."""
    said: list[str] = []
    same = ["a red car on the road", "two dogs play in the snow"]
    assert java_scores(same, [[text] for text in same], said.append)["METEOR"] == pytest.approx(1, abs=0.02)
    other = java_scores(same, [[text] for text in reversed(same)], said.append)
    assert other["METEOR"] < 0.3


def test_words_are_split_as_the_treebank_does() -> None:
    """Catches punctuation that counts as a word, and "isn't" that is one."""
    assert split_words("The dog's t-shirt isn't RED, is it?") == [
        "the",
        "dog",
        "'s",
        "t-shirt",
        "is",
        "n't",
        "red",
        "is",
        "it",
    ]
    assert ngrams(["a", "b", "a", "b"], 2) == {("a", "b"): 2, ("b", "a"): 1}


def test_answers_match_whatever_their_case_and_articles() -> None:
    """Catches "A dog." that is not "dog", and "no dog" that is."""
    assert exact_match(["A dog.", "no dog", "Two"], ["dog", "dog", ["2", "two"]]) == pytest.approx(2 / 3)
    assert exact_match(["", "The", "15", "5"], ["A", "A", "1.5", "-5"]) == 0
    assert exact_match(["a.", "1.5!"], ["A", "1.5"]) == 1


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model(world: World, models_toml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of stage 2, exported."""
    from pad_pipeline.training.job import Job
    from pad_pipeline.training.settings import Stage2Settings
    from pad_pipeline.workflows.learning.launch import train

    out = tmp_path_factory.mktemp("model") / "out"
    chat = world.llava.with_name("llava_chat.json")
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    chosen = Stage2Settings(steps=2, batch_size=4, micro_batch=4)
    train(
        Job(
            stage=2,
            data=str(chat),
            image_root=str(world.images),
            vision=str(clip),
            llm=str(llm),
            out=str(out),
            settings=chosen,
        )
    )
    return out


@pytest.fixture
def questions(world: World, tmp_path: Path) -> Path:
    names = sorted(path.name for path in world.images.iterdir())[:5]
    lines = []
    for name in names:
        width, height = Image.open(world.images / name).size
        lines.append(
            {
                "image": name,
                "sent": "the car",
                "bbox": [0, 0, 9, 9],
                "width": width,
                "height": height,
                "text": "Is it day?",
                "answer": "yes",
            }
        )
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize("what", ["rec", "captions", "vqa"])
def test_a_model_is_asked_and_scored_and_goes_on(
    pad: Pad, model: Path, questions: Path, world: World, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are kept as they come: a call that was killed in the middle of a line goes on behind the last whole one,
    and asks the rest alone; the scores are those of an unbroken call with another batch."""
    monkeypatch.setattr("shutil.which", lambda name: None)  # without Java, whose scores take longer than all else
    data = world.llava if what == "captions" else questions
    command = ["evaluate", what, "--model", model, "--data", data, "--images", world.images, "--limit", 5]
    whole = pad(*command, "--out", tmp_path / "a")
    assert whole.code == 0, whole.err
    answers = tmp_path / "a/answers.jsonl"
    lines = answers.read_text().splitlines(keepends=True)
    assert len(lines) == 5
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b/answers.jsonl").write_text("".join(lines[:2]) + lines[2][:9])
    again = pad(*command, "--out", tmp_path / "b", "--batch", 2)
    assert again.code == 0, again.err
    assert (tmp_path / "b/answers.jsonl").read_text() == answers.read_text()
    scores = [json.loads((tmp_path / run / "scores.json").read_text()) for run in "ab"]
    assert scores[0] == scores[1] and list(scores[0]) == [what]
    fewer = pad(*command[:-1], 3, "--out", tmp_path / "b")
    assert fewer.code == 0 and (tmp_path / "b/answers.jsonl").read_text() == answers.read_text()
    other = tmp_path / "other"
    for name in ("model.safetensors", "processor_config.json"):
        shutil.copytree(model / "hf", other)
        with (other / name).open("r+b") as file:
            file.seek(-4, 2)
            file.write(b"\0\0\1\0" if name.startswith("model") else b"   }")
        refused = pad(*command[:2], "--model", other, *command[4:], "--out", tmp_path / "a")
        assert refused.code == 2 and "answers of another model" in refused.err
        shutil.rmtree(other)


def test_bad_questions_are_told(pad: Pad, model: Path, questions: Path, world: World, tmp_path: Path) -> None:
    """Each a line, and never a traceback."""

    def refused(what: str, data: Path, *more: object) -> str:
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        done = pad("evaluate", what, "--model", model, "--data", data, "--images", world.images, "--out", out, *more)
        assert done.code == 2 and "Traceback" not in done.err, done.err
        return str(done.err)

    def written(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    line = json.loads(questions.read_text().splitlines()[0])
    assert "--data" in refused("rec", tmp_path / "none.jsonl")
    assert "no expressions" in refused("rec", written("a.json", "[1]"))
    assert "no area" in refused("rec", written("b.jsonl", json.dumps(line | {"bbox": [5, 5, 5, 9]})))
    assert "climbs out" in refused("rec", written("c.jsonl", json.dumps(line | {"image": "../x.png"})))
    assert "--images" in refused("rec", written("d.jsonl", json.dumps(line | {"image": "x.png"})))
    assert "{} once" in refused("rec", questions, "--prompt", "where?")
    assert "no answer" in refused("vqa", written("e.jsonl", json.dumps(line | {"answer": None})))
    assert "its captions can't be read" in refused("captions", written("f.json", '{"images": []}'))
    other = tmp_path / "other"
    other.mkdir()
    (other / "answers.jsonl").write_text('{"image": "q", "question": "z", "answer": "y"}\n')
    refused_ = pad("evaluate", "rec", "--model", model, "--data", questions, "--images", world.images, "--out", other)
    assert refused_.code == 2 and "but no model.json" in refused_.err
    assert pad("evaluate", "rec", *("--model", model, "--data", questions, "--images", world.images), "--limit", 1,
               "--out", tmp_path / "fresh").code == 0  # fmt: skip
    shutil.copy(tmp_path / "fresh/model.json", other)
    done = pad("evaluate", "rec", "--model", model, "--data", questions, "--images", world.images, "--out", other)
    assert done.code == 2 and "another question" in done.err


def test_lmms_checks_the_export_and_reads_results(pad: Pad, model: Path, tmp_path: Path) -> None:
    """A processor that crops where the training padded is told (transformers' do_pad is off by default); results that
    lmms-eval wrote come into the table."""
    out = tmp_path / "lmms"
    cropping = tmp_path / "cropping"
    shutil.copytree(model, cropping)
    path = cropping / "hf/processor_config.json"
    path.write_text(path.read_text().replace('"do_pad": true', '"do_pad": false'))
    (cropping / "hf/chat_template.jinja").unlink()
    nowhere = tmp_path / "no-python"
    told = pad("evaluate", "lmms", "--model", cropping, "--out", out, "--python", nowhere).err
    assert "its processor has 'crop'" in told and "no chat template" in told
    config = {"model_args": f"pretrained={model / 'hf'},dtype=bfloat16"}
    results = {
        "config": config,
        "results": {"gqa": {"alias": "gqa", "exact_match,none": 0.62, "exact_match_stderr,none": 0.01}},
    }
    (out / "llava").mkdir(parents=True)
    (out / "llava/20260101_results.json").write_text(json.dumps(results))
    later = {"config": config, "results": {"mme": {"mme_perception,none": 1500.5}}}
    (out / "llava/20260102_results.json").write_text(json.dumps(later))
    done = pad("evaluate", "lmms", "--model", model, "--out", out)
    shown = done.out
    assert (done.code, done.err) == (0, "")
    assert "gqa exact match" in shown and "0.620" in shown and "stderr" not in shown and "1500.5" in shown
    twice = tmp_path / "twice"  # BOS in the template of a tokenizer that puts one by itself
    shutil.copytree(model, twice)
    path = twice / "hf/chat_template.jinja"
    path.write_text("{{ bos_token }}" + path.read_text())
    assert (
        "would make other tokens of a question"
        in pad("evaluate", "lmms", "--model", twice, "--out", tmp_path / "new", "--python", nowhere).err
    )
    assert pad("evaluate", "lmms", "--model", cropping, "--out", out).code == 2  # another model's results
