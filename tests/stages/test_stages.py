"""Tag, ground, segment, patchify: labels from token spans, batches that do not change results, failures that stay
with their image."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.miniature.files import World
from pad_pipeline.records import ImageRecord, Shard, Tag
from pad_pipeline.stages import decode
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.tag import Tagger, TaggerSettings
from pad_pipeline.workflows.models.settings import ModelSettings, load_models
from tests.conftest import record
from tests.small_models import write_small_models

DECODING = DecodeSettings()
TWO = ComputeSettings(threads=2)


def tagged(world: World, count: int, tags: list[str]) -> list[ImageRecord]:
    return [
        record(world.images / f"scene-{index:05d}.png", tags=[Tag(tag, 0.9) for tag in tags[index:]])
        for index in range(count)
    ]


def test_tagger_gives_an_image_the_same_alone_and_in_a_batch(models: ModelSettings, world: World) -> None:
    tagger = Tagger(models.annotator(TaggerSettings), DECODING, TWO)
    together = tagger(Shard(0, tagged(world, 5, []))).rows
    for index, row in enumerate(together):
        (alone,) = tagger(Shard(0, [tagged(world, 5, [])[index]])).rows
        assert [tag.label for tag in alone.tags] == [tag.label for tag in row.tags]
        assert row.tags
        assert all(abs(one.score - other.score) < 1e-5 for one, other in zip(alone.tags, row.tags, strict=True))


def test_ram_plus_runs_as_the_tagger(world: World, tmp_path: Path) -> None:
    """The other family through the same stage: its label queries differ from image to image."""
    models = write_small_models(tmp_path, ["house", "car", "sky"], ["a car"], family="ram_plus")
    settings = load_models(str(models)).annotator(TaggerSettings)
    assert settings.family == "ram_plus"
    settings = settings.model_copy(update={"threshold": 0.0})
    first, second = Tagger(settings, DECODING, TWO)(Shard(0, tagged(world, 2, []))).rows
    assert [tag.label for tag in first.tags] == ["house", "car", "sky"]
    assert [tag.score for tag in first.tags] != [tag.score for tag in second.tags]


def test_an_image_without_tags_is_empty(models: ModelSettings, world: World) -> None:
    nothing = models.annotator(TaggerSettings).model_copy(update={"threshold": 1.0})
    (row,) = Tagger(nothing, DECODING, TWO)(Shard(0, tagged(world, 1, []))).rows
    assert (row.status, row.tags) == ("empty", [])


class Fragile(Stage):
    """Fails on batches that hold an image of the wrong name, as a broken model does on an odd input."""

    name = "fragile"

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.seen, self.batch_size = error, list[list[str]](), 100

    def prepare(self, row: ImageRecord) -> str:
        if row.key == "unreadable":
            raise ValueError("no pixels")
        return row.key

    def process(self, rows: list[ImageRecord], inputs: list[str]) -> list[str]:
        self.seen.append(inputs)
        if "bad" in inputs and len(inputs) < 9:
            raise self.error
        if len(inputs) > 4:
            raise torch.OutOfMemoryError("too many")
        return inputs

    def finish(self, row: ImageRecord, output: str) -> None:
        if output == "unwritable":
            raise ValueError("no room in the record")
        row.caption = "done"


def test_a_failure_stays_with_the_image_that_caused_it() -> None:
    """One bad image of nine used to take its batch along (FiftyOne, DALI); here it fails alone, with its reason."""
    keys = ["a", "b", "bad", "c", "unreadable", "d", "e", "unwritable", "g"]
    rows = Fragile(RuntimeError("odd\ninput"))(Shard(0, [ImageRecord(key, key, key=key) for key in keys])).rows
    failed = {row.key: (row.stage, row.reason) for row in rows if row.status == "failed"}
    assert failed == {
        "bad": ("fragile", "RuntimeError: odd input"),
        "unreadable": ("fragile", "ValueError: no pixels"),
        "unwritable": ("fragile", "ValueError: no room in the record"),
    }
    assert all(row.caption == "done" for row in rows if row.status == "ok")


def test_a_batch_that_did_not_fit_is_freed_before_its_halves_are_tried() -> None:
    """The exception of a failed batch held its tensors while the halves were computed: they ran out of memory too."""
    alive: list[weakref.ref] = []

    class Hungry(Fragile):
        def process(self, rows: list[ImageRecord], inputs: list[str]) -> list[str]:
            assert not any(reference() is not None for reference in alive), "an earlier attempt is still in memory"
            activations = torch.zeros(3)
            alive.append(weakref.ref(activations))
            if len(rows) > 2:
                raise torch.OutOfMemoryError(f"no room beside {activations.shape}")
            return inputs

    stage = Hungry(ValueError())
    rows = stage(Shard(0, [ImageRecord("", "", key=str(n)) for n in range(8)])).rows
    assert [row.status for row in rows] == ["ok"] * 8
    assert len(alive) == 6, "8 and 4 did not fit, and then four times 2"


def test_memory_runs_out_once_for_each_shape() -> None:
    """Every batch of a run used to hit the wall first and be halved after: a batch and a half of time for each."""
    tried: list[tuple[str, int]] = []

    class Hungry(Fragile):
        def shape(self, row: ImageRecord) -> str:
            return row.id

        def process(self, rows: list[ImageRecord], inputs: list[str]) -> list[str]:
            assert len({row.id for row in rows}) == 1, "a batch has one shape"
            tried.append((rows[0].id, len(rows)))
            if rows[0].id == "large" and len(rows) > 3:
                raise torch.OutOfMemoryError("no room")
            return inputs

    stage = Hungry(ValueError())
    stage.batch_size = 6
    for _ in range(2):
        rows = [ImageRecord("large" if n % 2 else "small", "", key=str(n)) for n in range(24)]
        assert all(row.caption == "done" for row in stage(Shard(0, rows)).rows)
    assert tried.count(("large", 6)) == 1
    assert tried.count(("large", 3)) == 8
    assert tried.count(("small", 6)) == 4


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("no room"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
@pytest.mark.parametrize("step", ["shape", "prepare", "process", "finish"])
def test_a_lack_of_memory_is_no_failure_of_an_image(step: str, error: Exception) -> None:
    """A machine that was short of memory for a minute set good images aside, for good."""

    def short(*arguments: object) -> None:
        raise error

    stage = Fragile(ValueError())
    setattr(stage, step, short)
    rows = [ImageRecord("", "", key=str(n)) for n in range(3)]
    with pytest.raises(MemoryError, match=type(error).__name__):
        stage(Shard(0, rows))
    assert [row.status for row in rows] == ["ok"] * 3


def test_an_image_that_does_not_fit_alone_is_tried_with_less_at_a_time() -> None:
    """Its prompts or boxes can go few by few, which is slower and better than failing."""

    class Hungry(Fragile):
        def process(self, rows: list[ImageRecord], inputs: list[str]) -> list[str]:
            if not self.low_memory:
                raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")
            return inputs

    (row,) = Hungry(ValueError())(Shard(0, [ImageRecord("", "", key="a")])).rows
    assert (row.status, row.caption) == ("ok", "done")


def test_batches_are_the_same_whatever_the_clock_says() -> None:
    """Shape first, then length, then the plan's order: a shard that is made again must give the same bytes."""

    class Sorted(Fragile):
        def shape(self, row: ImageRecord) -> tuple[int, int]:
            return row.height, row.width

        def length(self, row: ImageRecord) -> int:
            return len(row.id)

    sizes = [(2, 1, "aaa"), (1, 1, "a"), (2, 1, "a"), (1, 1, "aa"), (2, 1, "a")]
    rows = [ImageRecord(i, "", key=str(n), width=w, height=h) for n, (w, h, i) in enumerate(sizes)]
    stage = Sorted(ValueError())
    stage.batch_size = 2
    stage(Shard(0, rows))
    assert stage.seen == [["1", "3"], ["2", "4"], ["0"]]


def test_a_fault_of_the_machine_is_not_charged_to_images() -> None:
    """A dead disk or GPU failed every image that was left, for good; now it stops the run, which can be resumed."""
    fault = OSError(5, "Input/output error")
    with pytest.raises(OSError, match="Input/output"):
        Fragile(fault)(Shard(0, [ImageRecord("", "", key="bad")]))


def test_a_users_mistake_is_not_charged_to_images() -> None:
    mistake = UserError("llm.context", "sentence", "no", "do")
    with pytest.raises(UserError):
        Fragile(mistake)(Shard(0, [ImageRecord("", "", key="bad")]))


def test_an_image_is_decoded_once_while_there_is_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a stage that decodes again what an earlier one has decoded, pixels of another row, and memory that grows
    from shard to shard."""
    decoded: list[bytes] = []
    whole = decode.decode
    monkeypatch.setattr(decode, "decode", lambda data, settings: decoded.append(data) or whole(data, settings))
    gc.collect()  # rows of other tests
    for _shard in range(3):
        rows = [record(path) for path in sorted(world.images.iterdir())[:4]]
        sizes = [3 * row.width * row.height for row in rows]
        settings = DecodeSettings(kept_megabytes=1)
        monkeypatch.setattr(decode, "_kept", (1 << 20) - sum(sizes[:2]))  # room for two of them
        decoded.clear()
        for _stage in range(3):
            for row in rows:
                assert decode.image(row, settings).tobytes() == whole(row.data, settings)[0].tobytes()
        assert len(decoded) == 4 + 2 * 2
        assert decode._kept == 1 << 20
        decode.forget_image(rows[0])
        assert decode._kept == (1 << 20) - sizes[0]
        del row, rows
        assert decode._kept == (1 << 20) - sum(sizes[:2])
