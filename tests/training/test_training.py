"""Stage 1: the losses against hand-computed numbers, the template, the loop, and what it writes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration

from pad_pipeline.geometry import Fit, View, select_patches
from pad_pipeline.images import DecodeSettings, decode
from pad_pipeline.miniature.files import World
from pad_pipeline.shards.reader import open_shards
from pad_pipeline.training.batches import Batch, collate
from pad_pipeline.training.examples import Preprocessor, ShardExamples
from pad_pipeline.training.export import image_processor_for
from pad_pipeline.training.losses import caption_loss, patch_loss
from pad_pipeline.training.model import MultimodalModel, built_for, embedder_for
from pad_pipeline.training.order import SampleOrder, shuffled
from pad_pipeline.training.patch_terms import Regions
from pad_pipeline.training.projector import build_projector, load_projector, save_projector
from pad_pipeline.training.settings import PatchLossSettings, TrainSettings
from pad_pipeline.training.template import EncodedText, Template
from pad_pipeline.training.towers import CLIP_MEAN, CLIP_STD
from tests.conftest import import_photographs
from tests.small_models import write_small_models

Pad = Callable[..., Any]


def test_patch_loss_by_hand() -> None:
    """Two images of two patches in two dimensions. Region 0 of image 0 covers patch 0 wholly and patch 1 by 51/255;
    region 1 of image 1 covers patch 1 wholly; region 2 is out of view.
    cosines: r0: p0 3/5 with (1,0)·(3,4)/5, p1 0; r1: p1 -1."""
    tokens = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 1.0], [-7.0, 0.0]]])
    embeds = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    coverage = torch.tensor([[255, 51], [0, 255], [0, 0]], dtype=torch.uint8)
    image = torch.tensor([0, 1, 1])
    terms = {(0, 0): 1 - 0.6, (0, 1): 1 - 0.0, (1, 1): 1 + 1.0}
    expected = {
        ("soft", "token"): (terms[0, 0] + 0.2 * terms[0, 1] + terms[1, 1]) / 2.2,
        ("soft", "region"): ((terms[0, 0] + 0.2 * terms[0, 1]) / 1.2 + terms[1, 1]) / 2,
        ("any", "token"): (terms[0, 0] + terms[0, 1] + terms[1, 1]) / 3,
        ("any", "region"): ((terms[0, 0] + terms[0, 1]) / 2 + terms[1, 1]) / 2,
        ("half", "token"): (terms[0, 0] + terms[1, 1]) / 2,
        ("half", "region"): (terms[0, 0] + terms[1, 1]) / 2,
    }
    stored = coverage
    for (rule, average), value in expected.items():
        settings = PatchLossSettings(average=average)  # type: ignore[arg-type]
        chosen = select_patches(stored.numpy()[:, None], rule)[:, 0]  # type: ignore[arg-type]
        coverage = torch.from_numpy(chosen)
        found = patch_loss(tokens, Regions.of(embeds, coverage, image), settings)
        assert found.item() == pytest.approx(value, abs=1e-6), (rule, average)
    nothing = patch_loss(tokens, Regions.of(embeds[:0], coverage[:0], image[:0]), PatchLossSettings())
    assert nothing.item() == 0


def test_caption_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over targets; the same however many rows of logits are computed at a time."""
    hidden = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])).requires_grad_()
    head, targets = torch.nn.Identity(), torch.tensor([0, 1])
    expected = -(math.log(0.5) + math.log(0.1)) / 2
    whole = caption_loss(hidden, head, targets)
    assert whole.item() == pytest.approx(expected, abs=1e-6)
    (gradient,) = torch.autograd.grad(whole, hidden)
    monkeypatch.setattr("pad_pipeline.training.losses.ROWS", 1)
    pieces = caption_loss(hidden, head, targets)
    assert pieces.item() == pytest.approx(expected, abs=1e-6)
    assert torch.allclose(torch.autograd.grad(pieces, hidden)[0], gradient)


def test_defaults_are_llavas_and_the_papers() -> None:
    """LLaVA-1.5's pretrain.sh, and the paper's beta; a default that slips changes everybody's results."""
    settings = TrainSettings()
    assert (settings.projector, settings.vision_layer) == ("mlp", -2)
    assert (settings.batch_size, settings.epochs, settings.learning_rate) == (256, 1, 1e-3)
    assert (settings.warmup, settings.weight_decay, settings.max_length) == (0.03, 0, 2048)
    assert (settings.beta_start, settings.beta_end) == (0, 5)


def test_beta_rises_linearly_from_start_to_end() -> None:
    settings = TrainSettings()
    assert [settings.beta(step, 5) for step in range(5)] == [0, 1.25, 2.5, 3.75, 5]
    assert TrainSettings(beta_start=2, beta_end=2).beta(0, 1) == 2


def model_and_examples(models_toml: Path, shards: Path, **settings: Any) -> tuple[MultimodalModel, ShardExamples]:
    chosen = TrainSettings(**settings)
    folder = open_shards(shards)
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    model = MultimodalModel(str(clip), str(llm), chosen, torch.device("cpu"))
    preprocessor = Preprocessor(folder.run.view, model.mean, model.std, model.vision_tokens)
    words = embedder_for(llm, folder.run).tokens
    template = Template(chosen.template, model.tokenizer)
    return model, ShardExamples(folder, preprocessor, template, chosen, label_tokens=words)


def test_plain_template_is_llavas(models_toml: Path, shards: Path, world: World) -> None:
    """`BOS <image> caption "\\n"`: the question dropped, no EOS, only what follows the image supervised. Golden: the
    sequence is rebuilt here from the tokenizer alone, and the loss by transformers' own label handling (1e-5)."""
    model, examples = model_and_examples(models_toml, shards)
    tokenizer = AutoTokenizer.from_pretrained(models_toml.parent / "llm")
    captions = [turn["conversations"][1]["value"] for turn in json.loads(world.llava.read_text())]
    batch = collate([examples[0], examples[1]], examples.preprocessor)
    with torch.no_grad():
        caption = model(batch).caption
        tokens = model.encode_images(batch.pixels)
        embed = model.llm.get_input_embeddings()
        total = count = 0.0
        for row in (0, 1):
            ids = torch.tensor(tokenizer(captions[row] + "\n", add_special_tokens=False)["input_ids"])
            assert tokenizer.eos_token_id not in ids
            start = torch.tensor([tokenizer.bos_token_id])
            sequence = torch.cat([embed(start), tokens[row], embed(ids)])[None]
            labels = torch.cat([torch.full((1 + tokens.shape[1],), -100), ids])[None]
            total += model.llm(inputs_embeds=sequence, labels=labels).loss.item() * len(ids)
            count += len(ids)
    assert len(batch.targets) == count
    assert caption.item() == pytest.approx(total / count, abs=1e-5)


def test_samples_without_caption_or_region_still_count_for_the_other(models_toml: Path, shards: Path) -> None:
    """Catches vision tokens that land in another sample's text, where one has an image and no caption."""
    model, examples = model_and_examples(models_toml, shards)
    silent, bare = examples[0], examples[1]
    silent = silent._replace(text=EncodedText(silent.text.ids[:2], [False, False]))
    bare = bare._replace(coverage=bare.coverage[:0], embeds=bare.embeds[:0], used=bare.used[:0])
    for order in ([silent, bare], [bare, silent]):
        both = model(collate(order, examples.preprocessor))
        assert both.caption.item() == pytest.approx(
            model(collate([bare], examples.preprocessor)).caption.item(), abs=1e-5
        )
        assert both.patch.item() == pytest.approx(
            model(collate([silent], examples.preprocessor)).patch.item(), abs=1e-5
        )


def test_text_alone_beside_images(models_toml: Path, shards: Path) -> None:
    """Stage 2 has records without an image. Catches a shift of images, regions or targets between samples, and a
    batch of text alone from which the projector gets no gradient (other ranks would wait for it)."""
    model, examples = model_and_examples(models_toml, shards, llm="full")
    with_image = examples[0]
    ids = [model.tokenizer.bos_token_id, *with_image.text.ids[2:7]]
    text = examples.empty_example._replace(key="text", text=EncodedText(ids, [False, False, True, True, True, True]))
    alone = [model(collate([one], examples.preprocessor)) for one in (with_image, text)]
    counts = [len(collate([one], examples.preprocessor).targets) for one in (with_image, text)]
    both = model(collate([text, with_image], examples.preprocessor))
    expected = sum(one.caption.item() * n for one, n in zip(alone, counts, strict=True)) / sum(counts)
    assert both.caption.item() == pytest.approx(expected, abs=1e-5)
    assert both.patch.item() == pytest.approx(alone[0].patch.item(), abs=1e-6)
    alone[1].caption.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.projector.parameters())
    assert model.llm.get_input_embeddings().weight.grad.any()


@pytest.mark.parametrize("projector", ["c-abstractor", "pixel-shuffle"])
def test_masks_follow_the_tokens_of_a_projector_with_fewer(models_toml: Path, shards: Path, projector: str) -> None:
    """8 x 8 patches become 4 x 4 tokens, and each token is compared with what its own four patches show. Catches masks
    of one grid on tokens of another, and sequences with room for as many tokens as there are patches."""
    model, examples = model_and_examples(models_toml, shards, projector=projector, abstractor_tokens=16)
    batch = collate([examples[0], examples[1]], examples.preprocessor)
    assert len(batch.vision_at) == 2 * 16
    tokens = model.encode_images(batch.pixels).detach()
    assert tokens.shape[1] == 16
    embeds, coverage, _, image = batch.regions[:4]
    pooled = coverage.double().view(-1, 4, 2, 4, 2).mean((2, 4)).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(tokens[image], embeds.float()[:, None], dim=-1)
    expected = float(((1 - cosine) * pooled).sum() / pooled.sum())
    losses = model(batch)
    assert losses.patch.item() == pytest.approx(expected, abs=1e-5)
    (losses.caption + losses.patch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.projector.parameters())


@pytest.mark.parametrize("wanted", ["all", "first"])
@pytest.mark.parametrize("kind", ["words", "head"])
def test_losses_over_the_vocabulary_are_what_the_llm_says(
    models_toml: Path, shards: Path, kind: Any, wanted: Any
) -> None:
    """Against transformers' whole forward pass and the tokenizer, pair by pair, to 1e-5. Catches logits of the place
    before the token, labels that are tokenized otherwise than in the shards, and padding that counts as a word."""
    loss = {"kind": kind, "label_tokens": wanted, "temperature": 0.5}
    model, examples = model_and_examples(models_toml, shards, patch_loss=loss, caption_weight=0.0)
    pair = [examples[0], examples[1]]
    batch = collate(pair, examples.preprocessor)
    tokens = model.encode_images(batch.pixels).detach()
    table = model.llm.get_input_embeddings().weight
    total = weight = 0.0
    for number, row in enumerate((0, 1)):
        sample = open_shards(shards).sample(*examples.rows[row])
        places = (batch.vision_at // batch.ids.shape[1] == number).nonzero().flatten()
        at = batch.vision_at[places] % batch.ids.shape[1]
        sequence = table[batch.ids[number]].clone()
        sequence[at] = tokens[number]
        logits = model.llm(inputs_embeds=sequence[None]).logits[0, at]
        if kind == "words":
            logits = F.cosine_similarity(tokens[number][:, None], table[None], dim=-1) / 0.5
        surprise = -logits.log_softmax(-1)
        for region, covered in zip(sample.meta["regions"], sample.coverage.reshape(-1, 64) / 255, strict=True):
            ids = model.tokenizer(" " + region["label"], add_special_tokens=False)["input_ids"]
            ids = [token for token in ids if model.tokenizer.decode([token]) != " "]
            terms = surprise[:, ids if wanted == "all" else ids[:1]].mean(-1)
            total += float((terms * torch.from_numpy(covered)).sum())
            weight += covered.sum()
    losses = model(batch)
    assert losses.patch.item() == pytest.approx(total / weight, rel=1e-5)
    losses.patch.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.projector.parameters())
    assert all(p.grad is None for p in model.llm.parameters())


@pytest.mark.parametrize("kind", ["contrastive", "words", "head"])
def test_every_kind_of_patch_loss_can_be_trained(
    pad: Pad, shards: Path, models_toml: Path, tmp_path: Path, kind: str
) -> None:
    """Without captions, so that the LLM runs for `head` alone; the loss falls. The regions that settings leave out are
    counted at each step, and are no part of the loss."""
    label = open_shards(shards).sample(*open_shards(shards).usable()[0]).meta["regions"][0]["label"]
    settings = f'caption_weight = 0.0\nbeta_start = 5.0\n[patch_loss]\nkind = "{kind}"\naverage = "label"\n'
    settings += 'true_labels = "neutral"\n' if kind == "contrastive" else 'label_tokens = "first"\n'
    (tmp_path / "s.toml").write_text(settings + f'largest = 0.6\nwithout = ["{label}"]\n')
    parts = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm", "--batch-size", 10,
             "--micro-batch", 4, "--steps", 8, "--learning-rate", 0.01, "--settings", tmp_path / "s.toml"]  # fmt: skip
    done = pad("train", "--shards", shards, *parts, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[-1]["patch_loss"] < log[0]["patch_loss"] - 0.05
    meta = [open_shards(shards).sample(*row) for row in map(open_shards(shards).usable().__getitem__, range(10))]
    regions = [(r["label"], c.mean()) for one in meta for r, c in zip(one.meta["regions"], one.coverage, strict=True)]
    left_out = sum(name == label or share > 0.6 * 255 for name, share in regions)
    assert f"L_patch leaves out {left_out} of the {len(regions)} regions of this step" in " ".join(done.err.split())
    assert f"left {8 * left_out:,} regions out of L_patch" in done.out + done.err
    assert left_out and {(one["regions_left_out"], one["regions"]) for one in log} == {
        (left_out, len(regions) - left_out)
    }


def test_order_is_a_function_of_seed_and_step() -> None:
    """Every sample once an epoch, another order each epoch, any step computed by itself. Catches an order that depends
    on where a training was resumed."""
    order = SampleOrder(10, 4, seed=1)
    stream = np.concatenate([order.step(step) for step in range(10)])
    epochs = [stream[start : start + 10].tolist() for start in range(0, 40, 10)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 4
    assert epochs[0] != epochs[1]
    assert SampleOrder(10, 4, seed=1).step(7).tolist() == order.step(7).tolist()
    assert SampleOrder(10, 4, seed=2).step(0).tolist() != order.step(0).tolist()


@pytest.mark.parametrize("held", [0, 3, 60])
def test_the_order_is_that_of_earlier_versions(held: int) -> None:
    """A training that an earlier version began would otherwise see some samples twice and others never. Catches numbers
    of another size that are shuffled otherwise, and a held-out sample that is trained on."""
    out = np.sort(np.random.default_rng(5).permutation(100)[100 - held :])
    kept = np.setdiff1d(np.arange(100), out)
    epochs = [kept[np.random.default_rng((5, epoch)).permutation(len(kept))] for epoch in range(4)]
    order = SampleOrder(100, 7, 5, left_out=out)
    steps = [order.step(step) for step in range(4 * len(kept) // 7)]
    assert np.concatenate(steps).tolist() == np.concatenate(epochs)[: 7 * len(steps)].tolist()
    assert shuffled(np.random.default_rng(5), 100).tolist() == np.random.default_rng(5).permutation(100).tolist()


@pytest.mark.parametrize(("samples", "size", "images"), [(1000, 16, 600), (37, 8, 20), (64, 16, 32), (9, 9, 3)])
def test_grouping_keeps_kinds_and_lengths_together(samples: int, size: int, images: int) -> None:
    """Each sample once an epoch still; all but a few steps of one kind; far less padding than without. Catches epochs
    that overlap where their size is no multiple of the batch."""
    chance = np.random.default_rng(0)
    lengths, with_image = chance.integers(1, 500, samples), np.arange(samples) < images
    order = SampleOrder(samples, size, 0, lengths, with_image)
    steps = [order.step(step) for step in range(3 * samples // size)]
    stream = np.concatenate(steps)
    for epoch in range(len(stream) // samples):
        assert sorted(stream[epoch * samples : (epoch + 1) * samples]) == list(range(samples))
    if samples == 1000:
        mixed = [step for step in steps if 0 < with_image[step].sum() < size]
        assert len(mixed) <= 9
        plain = SampleOrder(samples, size, 0)
        padding = [sum(lengths[o.step(n)].max() * size for n in range(60)) for o in (order, plain)]
        assert padding[0] < 0.75 * padding[1]


@pytest.mark.parametrize("kind", ["mlp", "linear"])
def test_projector_file_has_llavas_names_and_comes_back(tmp_path: Path, kind: Any) -> None:
    projector = build_projector(kind, 6, 8)
    save_projector(projector, tmp_path / "mm_projector.bin")
    names = sorted(torch.load(tmp_path / "mm_projector.bin", weights_only=True))
    endings = ["0.bias", "0.weight", "2.bias", "2.weight"] if kind == "mlp" else ["bias", "weight"]
    assert names == [f"model.mm_projector.{ending}" for ending in endings]
    x = torch.rand(3, 6)
    assert torch.equal(load_projector(tmp_path / "mm_projector.bin")(x), projector(x))


def test_weights_beside_the_projector_are_left_out_and_named(tmp_path: Path, capsys: Any) -> None:
    """LLaVA saves `embed_tokens` with `mm_use_im_start_end`, and `image_newline` in later versions."""
    projector = build_projector("mlp", 6, 8)
    save_projector(projector, tmp_path / "mm_projector.bin")
    state = torch.load(tmp_path / "mm_projector.bin", weights_only=True)
    state |= {"model.embed_tokens.weight": torch.zeros(2, 8), "model.image_newline": torch.zeros(8)}
    torch.save(state, tmp_path / "mm_projector.bin")
    x = torch.rand(3, 6)
    assert torch.equal(load_projector(tmp_path / "mm_projector.bin")(x), projector(x))
    assert "also holds model.embed_tokens.weight, model.image_newline" in capsys.readouterr().err


@pytest.mark.parametrize("projector", ["mlp", "linear"])
def test_training_lowers_both_losses_and_exports(
    pad: Pad, models_toml: Path, shards: Path, world: World, tmp_path: Path, projector: str
) -> None:
    """The whole command; then stock transformers loads the folder, gives the same logits as our own forward pass on
    the same image (1e-4), and generates."""
    clip, llm, out = models_toml.parent / "clip", models_toml.parent / "llm", tmp_path / "run"
    done = pad(
        "train", "--stage", 1, "--shards", shards, "--vision", clip, "--llm", llm, "--out", out,
        "--projector", projector, "--batch-size", 10, "--micro-batch", 5, "--steps", 40, "--learning-rate", 0.01,
        "--beta-end", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert len(log) == 40
    assert [log[0]["beta"], log[-1]["beta"]] == [0, 1]
    for loss in ("caption_loss", "patch_loss"):
        assert log[-1][loss] < log[0][loss], loss

    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval()
    processor = AutoProcessor.from_pretrained(out / "hf")
    model, examples = model_and_examples(models_toml, shards, projector=projector)
    model.projector.load_state_dict(load_projector(out / "mm_projector.bin").state_dict())
    example = examples[2]
    batch = collate([example], examples.preprocessor)
    image_token = llava.config.image_token_index
    ids = [model.tokenizer.bos_token_id, *[image_token] * 64, *example.text.ids[2:]]
    with torch.inference_mode():
        ours = model.llm.lm_head(model.run_llm(model.encode_images(batch.pixels), batch))
        theirs = llava(input_ids=torch.tensor([ids]), pixel_values=batch.pixels).logits[0]
    assert (ours - theirs[:, : ours.shape[1]]).abs().max() < 1e-5

    inputs = processor(
        images=Image.open(world.images / "scene-00002.png").convert("RGB"), text="<image>", return_tensors="pt"
    )
    assert (inputs["input_ids"] == image_token).sum() == 64
    assert example.pixels is not None
    assert (inputs["pixel_values"][0] - example.pixels).abs().max() < 0.03  # the tensor-based resize differs by .015
    said = llava.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert said.shape[1] > inputs["input_ids"].shape[1]
    assert image_token not in said[0, inputs["input_ids"].shape[1] :]


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_exported_processor_shows_the_trained_view(fit: Fit, world: World) -> None:
    """Catches the `do_pad` trap: a model that was trained on padded images, and whose processor crops. Pixel for
    pixel."""
    view = View(size=112, fit=fit)
    processor = image_processor_for(view, CLIP_MEAN, CLIP_STD)
    red, green, blue = (int(255 * channel) for channel in CLIP_MEAN)
    for index in range(4):
        image = decode((world.images / f"scene-{index:05d}.png").read_bytes(), DecodeSettings())[0]
        seen = np.asarray(view.apply(image, (red, green, blue)), np.float64).transpose(2, 0, 1) / 255
        expected = (seen - np.array(CLIP_MEAN)[:, None, None]) / np.array(CLIP_STD)[:, None, None]
        found = processor(images=image, return_tensors="np")["pixel_values"][0]
        assert np.abs(found - expected).max() < 1e-5


def test_what_does_not_fit_is_an_error(pad: Pad, models_toml: Path, shards: Path, tmp_path: Path) -> None:
    """Another view, another LLM of the same width, a missing model, and used folders each give one line, and nothing is
    written."""
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"

    def refused(*changes: object, shards: Path = shards, vision: Path = clip, llm: Path = llm) -> str:
        done = pad("train", "--shards", shards, "--vision", vision, "--llm", llm, "--out", tmp_path / "run", *changes)
        assert done.code == 2
        assert done.err.count("\n") == 1, done.err
        assert not (tmp_path / "run").exists()
        return done.err

    other = tmp_path / "clip"
    other.mkdir()
    config = json.loads((clip / "config.json").read_text())
    for name in ("model.safetensors", "preprocessor_config.json"):
        (other / name).write_bytes((clip / name).read_bytes())
    (other / "config.json").write_text(json.dumps(config | {"image_size": 224}))
    said = refused(vision=other)
    assert "it takes images of 224 px in patches of 14 px, and the shards are made for 112 px" in said
    assert "--view-size 224 and --patch 14" in said
    (other / "config.json").write_text(json.dumps(config | {"image_size": 384}))
    assert "--view-size 384 and --patch 14" in refused(vision=other), "a view of 27 x 27 patches"
    (other / "config.json").write_text(json.dumps(config | {"image_size": 8}))
    assert "patches of 14 px in images of 8 px" in refused(vision=other)
    assert "model_type is 'llama', and should be clip or clip_vision_model or dinov2" in refused(vision=llm)
    assert "there is no run.json in it" in refused(shards=clip)
    assert "neither a folder nor a hub name" in refused(vision=tmp_path / "nowhere")
    assert "--learning-rate = inf: Input should be a finite number" in refused("--learning-rate", "inf")
    assert "is not finite" in pad(
        "train", "--shards", shards, "--vision", clip, "--llm", llm, "--out", tmp_path / "run", "--learning-rate", 1e30,
        "--steps", 5, "--batch-size", 4,
    ).err  # fmt: skip
    assert not (tmp_path / "run" / "mm_projector.bin").exists()


def test_shards_of_another_llm_get_this_ones_words(
    pad: Pad, world: World, models_toml: Path, shards: Path, tmp_path: Path
) -> None:
    """Labels are strings, so shards serve every LLM, and the log says so. Catches one LLM's embeddings as targets for
    another, and rows that are mixed up between regions."""
    other = write_small_models(tmp_path / "models", ["a"], [caption_of(world, n) for n in range(10)], seed=7).parent
    clip = models_toml.parent / "clip"
    arguments = ["--vision", clip, "--llm", other / "llm", "--steps", 2, "--batch-size", 4]
    done = pad("train", "--shards", shards, *arguments, "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "labels are embedded again" in done.err
    folder, settings = open_shards(shards), TrainSettings()
    embedder = embedder_for(other / "llm", folder.run)
    assert built_for(models_toml.parent / "llm", folder.run) and not built_for(other / "llm", folder.run)
    model = MultimodalModel(str(clip), str(other / "llm"), settings, torch.device("cpu"))
    preprocessor = Preprocessor(folder.run.view, model.mean, model.std, model.vision_tokens)
    examples = ShardExamples(folder, preprocessor, Template("plain", model.tokenizer), settings, embedder)
    table = model.llm.get_input_embeddings().weight
    labels = [region["label"] for region in folder.sample(*folder.usable()[3]).meta["regions"]]
    assert labels
    for label, embed in zip(labels, examples[3].embeds, strict=True):
        ids = model.tokenizer(" " + label, add_special_tokens=False)["input_ids"]
        ids = [token for token in ids if model.tokenizer.decode([token]) != " "]
        assert np.allclose(embed, table[ids].mean(0).detach(), atol=1e-3)


def caption_of(world: World, number: int) -> str:
    return str(json.loads(world.llava.read_text())[number]["conversations"][1]["value"])


def test_stage_2_reads_shards_too(pad: Pad, models_toml: Path, shards: Path, tmp_path: Path) -> None:
    """Dialogues of the shards under the v1 template, the patch loss beside it: both fall."""
    clip, llm = models_toml.parent / "clip", models_toml.parent / "llm"
    done = pad(
        "train", "--stage", 2, "--shards", shards, "--vision", clip, "--llm", llm, "--out", tmp_path / "run",
        "--steps", 30, "--batch-size", 10, "--learning-rate", 0.003, "--beta-end", 1,
    )  # fmt: skip
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    for loss in ("caption_loss", "patch_loss"):
        assert log[-1][loss] < log[0][loss], loss
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_out_of_memory_names_the_setting_to_lower(
    pad: Pad, shards: Path, models_toml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU raises is a line with the size that did not fit, and no traceback."""

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(MultimodalModel, "forward", full)
    parts = ["--vision", models_toml.parent / "clip", "--llm", models_toml.parent / "llm", "--micro-batch", 3]
    done = pad("train", "--shards", shards, *parts, "--out", tmp_path / "run")
    assert done.code == 2 and "--micro-batch = 3" in done.err and "lower it" in done.err


@pytest.mark.slow
def test_photographs_and_a_real_language_model(pad: Pad, models_toml: Path, tmp_path: Path) -> None:
    """Human masks of 51 photographs, a LLaMA that writes sentences: both losses fall."""
    llm = import_photographs(pad, models_toml, tmp_path / "human")
    done = pad(
        "train", "--shards", tmp_path / "human", "--vision", models_toml.parent / "clip", "--llm", llm,
        "--out", tmp_path / "run", "--batch-size", 51, "--micro-batch", 17, "--steps", 12, "--learning-rate", 0.003,
    )  # fmt: skip
    assert done.code == 0, done.err
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert log[-1]["caption_loss"] < log[0]["caption_loss"] - 0.2
    assert log[-1]["patch_loss"] < log[0]["patch_loss"] - 0.1


def test_a_batch_moves_whole() -> None:
    """Every tensor of a batch goes to the device; one that stays behind fails on the first GPU only."""
    batch = Batch(["k"], *(torch.zeros(1) for _ in Batch._fields[1:]))
    assert all(part.device.type == "meta" for part in batch.to(torch.device("meta"))[1:])
