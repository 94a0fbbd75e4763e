"""docs/howto/other-trainers.md: its code runs, and its losses are those of `pad train`. `PatchLoss` by itself.

The block for LLaVA's own trainer runs on a stand-in with the names that it uses: LLaVA pins transformers
4.37, and pad needs 5.
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import AutoProcessor, LlavaForConditionalGeneration, Trainer, TrainingArguments

from pad_pipeline.errors import UserError
from pad_pipeline.shards.reader import Sample, open_shards
from pad_pipeline.training.batches import collate
from pad_pipeline.training.examples import Preprocessor, ShardExamples
from pad_pipeline.training.export import export_llava
from pad_pipeline.training.losses import PatchLoss, patch_loss
from pad_pipeline.training.model import MultimodalModel
from pad_pipeline.training.patch_terms import Regions
from pad_pipeline.training.settings import PatchLossSettings, TrainSettings
from pad_pipeline.training.template import IMAGE, Template
from tests.conftest import ROOT
from tests.training.test_losses import SETTINGS, drawn
from tests.training.trained_models import build, view_for

HUGGING_FACE, STREAM, LLAVA = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs/howto/other-trainers.md").read_text(), re.DOTALL
)


@pytest.fixture
def model(models_toml: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MultimodalModel:
    """Return a new model of pad's. The current folder holds the shards `human` and the exported model `trained/hf`."""
    towers = [str(models_toml.parent / name) for name in ("clip", "llm")]
    made = MultimodalModel(*towers, TrainSettings(), torch.device("cpu"))
    export_llava(made, open_shards(shards).run.view, tmp_path / "trained/hf")
    (tmp_path / "human").symlink_to(shards)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return made


def run(code: str, steps: int = 4, names: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
    """Run a block of the page, with more arguments of the Trainer. Return its names."""
    given = "".join(f", {name}={value!r}" for name, value in arguments.items())
    names = {} if names is None else names
    exec(code.replace("max_steps=4", f"max_steps={steps}{given}, use_cpu=True"), names)
    return names


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if "grad_norm" in entry]


def test_the_road_is_short() -> None:
    """Copying it should take a minute."""
    assert sum(bool(line.strip()) for line in HUGGING_FACE.splitlines()) < 40


def test_the_patch_loss_falls_in_hugging_faces_trainer(model: MultimodalModel) -> None:
    """Beta rises from 0 to 5, and only the projector learns. Catches regions that the Trainer drops, a beta that stays
    0, and a loss without a gradient."""
    names = run(HUGGING_FACE, 40, per_device_train_batch_size=5)
    losses = logged(names["trainer"], "patch_loss")
    assert np.mean(losses[-4:]) < np.mean(losses[:4]) - 0.1, losses
    assert logged(names["trainer"], "beta") == pytest.approx(np.linspace(0, 5, 40))
    before = LlavaForConditionalGeneration.from_pretrained("trained/hf").state_dict()
    changed = {name for name, value in names["model"].state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all("multi_modal_projector" in name for name in changed)


def test_losses_are_those_of_pad_train(model: MultimodalModel, shards: Path) -> None:
    """Of the same four images, to 1e-5: the same tokens are supervised, the same pixels seen, the same patches compared
    with the same labels. Catches a BOS or padding that is learned, and rows of patches that are mixed up."""
    names = run(HUGGING_FACE)
    stock = names["model"]
    stock.load_state_dict(LlavaForConditionalGeneration.from_pretrained("trained/hf").state_dict())
    stock.lm_head.weight = nn.Parameter(
        stock.lm_head.weight[: len(model.tokenizer)]
    )  # `<image>` is no word of pad's LLM
    stock.config.text_config.vocab_size = len(model.tokenizer)
    folder = open_shards(shards)
    preprocessor = Preprocessor(folder.run.view, model.mean, model.std, model.vision_tokens)
    examples = ShardExamples(folder, preprocessor, Template("plain", model.tokenizer), TrainSettings())
    with torch.no_grad():
        ours = model(collate([examples[number] for number in range(4)], preprocessor))
        inputs = names["collate"]([names["trainer"].train_dataset[number] for number in range(4)])
        trainer, found = names["trainer"], []
        for trainer.beta in (0.0, 3.0):
            found.append(trainer.compute_loss(trainer.model, dict(inputs)).item())
    assert found[0] == pytest.approx(ours.caption.item(), abs=1e-5)
    assert found[1] == pytest.approx((ours.caption + 3 * ours.patch).item(), abs=1e-5)
    assert trainer.patch.item() == pytest.approx(ours.patch.item(), abs=1e-6)


def test_with_beta_0_training_is_stock_llavas(model: MultimodalModel) -> None:
    """Step by step, to the bit, with gradients that are accumulated. Catches a caption loss that is scaled, and a
    patch loss that leaks into it."""
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}
    names = run(HUGGING_FACE.replace("5.0 *", "0.0 *"), 5, **options)

    def stock_collate(samples: list[Sample]) -> dict[str, Any]:
        return {name: value for name, value in names["collate"](samples).items() if name not in ("embeds", "coverage")}

    stock = LlavaForConditionalGeneration.from_pretrained("trained/hf", dtype=torch.float32)
    stock.requires_grad_(False).model.multi_modal_projector.requires_grad_(True)
    settings = TrainingArguments(
        "stock", max_steps=5, logging_steps=1, learning_rate=1e-3, remove_unused_columns=False, use_cpu=True, **options
    )
    trainer = Trainer(stock, settings, stock_collate, names["trainer"].train_dataset)
    trainer.train()
    for name in ("loss", "grad_norm"):
        assert logged(names["trainer"], name) == logged(trainer, name)


def test_bfloat16_as_the_page_says(model: MultimodalModel) -> None:
    """Frozen weights in bfloat16, the projector in float32, autocast. Catches dtypes that don't meet."""
    code = HUGGING_FACE.replace('dtype="float32"', 'dtype="bfloat16"')
    names = run(code.replace("arguments =", "model.model.multi_modal_projector.float()\narguments ="), 3, bf16=True)
    assert np.isfinite(logged(names["trainer"], "loss")).all()
    assert next(names["model"].model.multi_modal_projector.parameters()).dtype == torch.float32


@pytest.mark.parametrize("llm", ["vicuna", "llama3", "qwen2"])
def test_captions_become_llavas_tokens(parts: Path, llm: str, tmp_path: Path, model: MultimodalModel) -> None:
    """Also of a tokenizer that puts a space before every text, with the page's remedy. Catches a first word that is
    another token than in stage 1."""
    built = build(parts, llm)
    export_llava(built, view_for(built), tmp_path / "other")
    code = HUGGING_FACE.replace("<image>{", "<image> {") if llm == "vicuna" else HUGGING_FACE
    names = run(code.partition("processor = ")[0])
    processor = AutoProcessor.from_pretrained(tmp_path / "other")
    processor.tokenizer.pad_token = processor.tokenizer.pad_token or processor.tokenizer.eos_token
    names["processor"], stream = processor, io.BytesIO()
    Image.new("RGB", (30, 20)).save(stream, "PNG")
    captions = ["A dog.", "5 cats on a mat"]
    arrays = np.zeros((0, 4, 4), np.uint8), np.zeros((0, 32), np.float16)
    metas = [{"caption": caption, "regions": []} for caption in captions]
    batch = names["collate"]([Sample("k", stream.getvalue(), meta, *arrays) for meta in metas])  # type: ignore[arg-type]
    for row, labels, mask, caption in zip(
        batch["input_ids"], batch["labels"], batch["attention_mask"], captions, strict=True
    ):
        text = Template("plain", built.tokenizer).caption(caption)
        ids = [one for token in text.ids for one in ([processor.image_token_id] * 16 if token == IMAGE else [token])]
        assert row[mask.bool()].tolist() == ids
        learned = labels[1:][labels[1:] != -100].tolist()  # the first token is predicted by none
        assert learned == [token for token, supervised in zip(*text, strict=True) if supervised]


# ---- streams


def test_webdataset_streams_the_same_samples(model: MultimodalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of three nodes gets a tar of its own; together they get every sample, as the reader by offset gives it.
    Catches members that are mixed up, and a sample that two nodes see."""
    names = run(HUGGING_FACE)
    run(STREAM, names=names)
    assert len(logged(names["trainer"], "patch_loss")) == 4
    dataset = names["ShardDataset"]("human/")
    expected = {sample.key: sample for sample in (dataset[number] for number in range(len(dataset)))}
    names["collate"], nodes = list, []
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        loader = names["trainer"].get_train_dataloader()
        found = {sample.key: sample for _, batch in zip(range(6), loader, strict=False) for sample in batch}
        nodes.append(set(found))
        for key, sample in found.items():
            same = expected[key]
            assert (sample.image, sample.meta) == (same.image, same.meta)
            assert np.array_equal(sample.coverage, same.coverage) and np.array_equal(sample.embeds, same.embeds)
    assert sorted(key for node in nodes for key in node) == sorted(expected)


@pytest.mark.long
def test_two_processes_train_on_streams(model: MultimodalModel, tmp_path: Path) -> None:
    """Under torchrun, as on many nodes. Catches a loader of accelerate's, which reads in the first process alone."""
    told = "print('SEEN', *(sample.key for sample in samples))\n    texts ="
    code = HUGGING_FACE.replace("trainer.train()", "").replace("texts =", told)
    code = (code + STREAM).replace("max_steps=4", "max_steps=6, per_device_train_batch_size=2, use_cpu=True")
    code = code.replace("num_workers=1", "num_workers=0")
    # Threads of a process group that nobody ends can abort the process at its exit.
    code += "\nimport torch.distributed\n\ntorch.distributed.destroy_process_group()\n"
    (tmp_path / "train.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--tee", "3", "train.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, set[str]] = {"0": set(), "1": set()}
    for rank, keys in re.findall(r"\[default(\d)\]:SEEN (.*)", done.stdout):
        seen[rank].update(keys.split())
    assert len(seen["0"] | seen["1"]) == 10 and not seen["0"] & seen["1"]


# ---- LLaVA's own trainer


class Records:
    """LLaVA's dataset, as far as the page uses it."""

    def __init__(self, data_path: Any, tokenizer: Any, data_args: Any) -> None:
        self.list_data_dict, self.data_args = data_path, data_args

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"images": torch.full((4, 3), float(number))}


class Collator:
    def __init__(self, tokenizer: Any) -> None: ...

    def __call__(self, records: list[dict[str, Any]]) -> dict[str, Any]:
        return {"images": torch.stack([record["images"] for record in records])}


class OldTrainer:
    """The Trainer of transformers 4.37: `compute_loss` knows no number of items."""

    def __init__(self, model: Any) -> None:
        self.model, self.state = model, SimpleNamespace(global_step=1, max_steps=3)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        loss = model(**inputs)
        return (loss, {"loss": loss}) if return_outputs else loss


class OldModel(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.mm_projector, self.shape = nn.Linear(12, tokens * width), (tokens, width)

    def get_model(self) -> OldModel:
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.mm_projector(images.flatten(1)).square().mean()


def test_llavas_trainer_gets_the_patch_loss(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With half of beta's 5 in the second of three steps, on the tokens that LLaVA projected for its own loss. Catches
    names of pad's that have changed, regions of other records, and regions that LLaVA's model would be given."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "human").symlink_to(shards)
    train = ModuleType("llava.train.train")
    vars(train).update(
        LazySupervisedDataset=Records, DataCollatorForSupervisedDataset=Collator, LLaVATrainer=OldTrainer
    )
    package = ModuleType("llava.train")
    package.train = train  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llava", ModuleType("llava"))
    monkeypatch.setitem(sys.modules, "llava.train", package)
    names = run(LLAVA, names={"__name__": "train_pad"})
    dataset = open_shards(shards)
    samples = [dataset.sample(*dataset.usable()[number]) for number in (3, 1)]
    data = [{"id": row["id"]} for _, row in dataset.rows()]
    module = train.make_supervised_data_module(None, SimpleNamespace(data_path=data))  # type: ignore[attr-defined]
    inputs = module["data_collator"]([module["train_dataset"][number] for number in (3, 1)])
    grid, width = dataset.run.view.grid, dataset.run.embedding_width
    model = OldModel(grid**2, width)
    model.mm_projector.register_forward_hook(lambda module, args, output: output.view(-1, grid**2, width))
    trainer = train.LLaVATrainer(model)  # type: ignore[attr-defined]
    assert isinstance(trainer, names["PatchTrainer"])
    images = inputs["images"]
    found = trainer.compute_loss(model, inputs)
    regions = [sample.region_embeds() for sample in samples], [sample.coverage for sample in samples]
    expected = model(images) + 2.5 * PatchLoss()(model.mm_projector(images.flatten(1)), *regions)
    assert found.item() == expected.item()


# ---- the module


@pytest.mark.parametrize("settings", [one for one in SETTINGS if not one.needs_words])
def test_the_module_is_the_trainers_loss_to_the_bit(settings: PatchLossSettings) -> None:
    """From lists, from arrays of grids, and padded; also within autocast. Catches padding that counts as a label, and
    regions of another image."""
    module = PatchLoss(settings.kind, settings.compare, settings.average, 0.2, settings.true_labels)  # type: ignore[arg-type]
    for seed in range(5):
        tokens, regions = drawn(seed)[:2]
        regions = Regions.of(regions.embeds, regions.coverage, regions.image)
        embeds, coverage, image = regions.embeds, regions.coverage, regions.image
        expected = patch_loss(tokens, regions, settings)
        lists = [[part[image == number] for number in range(4)] for part in (embeds, coverage)]
        padded = [nn.utils.rnn.pad_sequence(part, batch_first=True) for part in lists]
        grids = [[part.numpy() for part in lists[0]], [part.reshape(-1, 3, 3).numpy() for part in lists[1]]]
        for given in (lists, padded, grids):
            assert torch.equal(module(tokens, *given), expected)
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(module(tokens, *given), expected)
        # Two halves that know the divisor of the whole.
        divisor = module.divisor(tokens, *lists)
        halves = [module(tokens[part], *(one[part] for one in lists), divisor) for part in (slice(2), slice(2, 4))]
        assert sum(halves).item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_module_refuses_shapes_that_do_not_fit() -> None:
    """A tower's CLS among the tokens would shift every patch by one; another LLM's labels have another width."""
    tokens, module = torch.randn(2, 9, 5), PatchLoss()
    right = [[torch.randn(3, 5), torch.zeros(0, 5)], [torch.ones(3, 9), torch.zeros(0, 9)]]
    assert module(tokens, *right) > 0
    for wrong, rule in [
        ((torch.randn(2, 10, 5), *right), r"its coverage is \[3, 9\], and its tokens are \[10, 5\]"),
        ((torch.randn(2, 9, 6), *right), r"embeds = \[3, 5\] in image 0"),
        ((tokens, right[0][:1], right[1]), "1 images: `tokens` has 2 images"),
        ((tokens, right[0], [torch.ones(2, 9), right[1][1]]), r"coverage is \[2, 9\]"),
    ]:
        with pytest.raises(UserError, match=rule):
            module(*wrong)
