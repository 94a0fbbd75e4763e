"""Run the example that the authors of a model publish, with their own code, and write its numbers to files.

pad starts this file with the Python that has the authors' packages. Those don't go with pad's own, so the file imports
nothing of pad, and runs from Python 3.9 on:

    python script.py FOLDER

It reads FOLDER/job.json: the name of the example, and its arguments. It writes FOLDER/arrays.npz with the numbers, and
then FOLDER/result.json with facts and versions, or with the reason why a package can't be imported.
"""

from __future__ import annotations

import importlib
import json
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

Example = tuple[dict[str, Any], dict[str, Any]]
"""The numbers of an example, as arrays by name, and facts about it, which go into JSON."""


def ram(job: dict[str, Any], folder: Path) -> Example:
    """Tag an image with RAM or RAM++, as `inference_ram.py` and `inference_ram_plus.py` of the authors do."""
    from PIL import Image
    from ram import get_transform, inference_ram, models

    tokenizer = {"text_encoder_type": job["tokenizer"]} if job["tokenizer"] else {}
    lists = {"tag_list": job["tag_list"], "tag_list_chinese": job["tag_list"]}
    build = getattr(models, job["family"])
    model = build(pretrained=job["weights"], image_size=job["image_size"], vit=job["vit"], **lists, **tokenizer).eval()
    _check_loaded(model, job["weights"], ("tag_encoder.", "text_decoder."), {"vision_multi": "tagging_head"})
    image = get_transform(image_size=job["image_size"])(Image.open(job["image"])).unsqueeze(0)
    logits = _outputs(model.fc)
    tags, _ = inference_ram(image, model)
    numbers = {"pixels": image[0], "logits": logits[-1][0, :, 0], "thresholds": model.class_threshold}
    return numbers, {"tags": [tag for tag in tags.split(" | ") if tag]}


def groundingdino(job: dict[str, Any], folder: Path) -> Example:
    """Find boxes with an official Grounding DINO, as the README of the authors does."""
    import torch
    from groundingdino import config
    from groundingdino.util.inference import load_image, load_model, predict
    from transformers import BertConfig, BertModel

    # The authors' loader wants a BERT from the hub, whose weights the checkpoint then replaces. This one is as large.
    text = folder / "bert"
    BertModel(BertConfig(**job["text_config"])).save_pretrained(text)
    vocabulary = Path(job["tokenizer"]) / "vocab.txt"
    for file in [vocabulary] if vocabulary.is_file() else Path(job["tokenizer"]).glob("tokenizer*"):
        shutil.copy(file, text)
    named = Path(next(iter(config.__path__))) / job["config"]
    settings = {**job["settings"], "text_encoder_type": str(text)}
    own = folder / "config.py"
    own.write_text(named.read_text() + "".join(f"{name} = {value!r}\n" for name, value in settings.items()))

    model = load_model(str(own), job["weights"], device="cpu")
    _check_loaded(model, job["weights"], ("label_enc.",), {"module.": ""})
    outputs = _outputs(model)
    _, image = load_image(job["image"])
    thresholds = job["box_threshold"], job["text_threshold"]
    with _recorded_topk(model.num_queries) as picked:
        _, scores, phrases = predict(model, image, job["caption"], *thresholds, device="cpu")
    ids = torch.tensor(model.tokenizer(job["caption"])["input_ids"])
    logits, boxes = outputs[-1]["pred_logits"][0, :, : len(ids)], outputs[-1]["pred_boxes"][0]
    numbers = {"pixels": image, "ids": ids, "logits": logits, "boxes": boxes, **picked}
    return numbers, {"found": [[phrase, float(score)] for phrase, score in zip(phrases, scores)]}  # noqa: B905


def transformers_detector(job: dict[str, Any], folder: Path) -> Example:
    """Find boxes with a model folder of transformers, as the pages of these models on the hub do."""
    from PIL import Image
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    processor = AutoProcessor.from_pretrained(job["weights"], local_files_only=True)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(job["weights"], local_files_only=True).float().eval()
    image = Image.open(job["image"]).convert("RGB")
    inputs = processor(images=image, text=job["caption"], return_tensors="pt")
    with _recorded_topk(model.config.num_queries) as picked:
        outputs = model(**inputs)
    (found,) = processor.post_process_grounded_object_detection(
        outputs, inputs["input_ids"], job["box_threshold"], job["text_threshold"], target_sizes=[image.size[::-1]]
    )
    ids = inputs["input_ids"][0]
    logits, boxes = outputs.logits[0, :, : len(ids)], outputs.pred_boxes[0]
    numbers = {"pixels": inputs["pixel_values"][0], "ids": ids, "logits": logits, "boxes": boxes, **picked}
    labels = found.get("text_labels", found["labels"])
    return numbers, {"found": [[str(label), float(one)] for label, one in zip(labels, found["scores"])]}  # noqa: B905


def segment_anything(job: dict[str, Any], folder: Path) -> Example:
    """Make masks with an official SAM or SAM-HQ, as the READMEs of the authors do, with boxes for prompts."""
    import numpy as np
    import torch
    from PIL import Image

    package = importlib.import_module(job["package"])
    kind = job["model_type"]
    sam = package.sam_model_registry[kind](checkpoint=job["weights"]) if kind else _small_sam(job)
    _check_loaded(sam.eval(), job["weights"])
    predictor = package.SamPredictor(sam)
    image = np.array(Image.open(job["image"]).convert("RGB"))
    predictor.set_image(image)
    masks = [predictor.predict(box=np.array(box), multimask_output=False)[:2] for box in job["boxes"]]
    resized = torch.as_tensor(predictor.transform.apply_image(image)).permute(2, 0, 1)
    return _masks(masks, sam.preprocess(resized[None])[0])


def _small_sam(job: dict[str, Any]) -> Any:
    """Build a SAM of the authors' classes in a size that they never published, and load its weights."""
    from functools import partial

    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    shape = job["shape"]
    width, edge, side = shape["decoder_width"], shape["image_size"], shape["image_size"] // shape["patch"]
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=edge, patch_size=shape["patch"], embed_dim=shape["width"], depth=shape["depth"],
            num_heads=shape["heads"], mlp_ratio=4, out_chans=width, qkv_bias=True,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6), use_rel_pos=True, window_size=shape["window"],
            global_attn_indexes=tuple(shape["global_attention"]),
        ),
        prompt_encoder=PromptEncoder(width, (side, side), (edge, edge), mask_in_chans=16),
        mask_decoder=MaskDecoder(
            transformer_dim=width, transformer=TwoWayTransformer(2, width, 8, shape["decoder_mlp"]),
            iou_head_hidden_dim=width,
        ),
    )  # fmt: skip
    sam.load_state_dict(torch.load(job["weights"], map_location="cpu", weights_only=True))
    return sam


def sam2(job: dict[str, Any], folder: Path) -> Example:
    """Make masks with an official SAM 2.1, as the README of the authors does, with boxes for prompts."""
    import numpy as np
    import torch
    from PIL import Image
    from sam2.build_sam import build_sam2
    from sam2.sam2_image_predictor import SAM2ImagePredictor

    predictor = SAM2ImagePredictor(build_sam2(job["config"], job["weights"], device="cpu"))
    image = np.array(Image.open(job["image"]).convert("RGB"))
    with torch.inference_mode():
        predictor.set_image(image)
        masks = [predictor.predict(box=np.array(box), multimask_output=False)[:2] for box in job["boxes"]]
    return _masks(masks, predictor._transforms(image))


def transformers_segmenter(job: dict[str, Any], folder: Path) -> Example:
    """Make masks with a model folder of transformers, as the pages of these models on the hub do."""
    import transformers
    from PIL import Image

    processor = getattr(transformers, job["classes"][1]).from_pretrained(job["weights"], local_files_only=True)
    model = getattr(transformers, job["classes"][0]).from_pretrained(job["weights"], local_files_only=True)
    image = Image.open(job["image"]).convert("RGB")
    inputs = processor(images=image, input_boxes=[job["boxes"]], return_tensors="pt")
    prompts = {"pixel_values": inputs["pixel_values"], "input_boxes": inputs["input_boxes"].float()}
    outputs = model.float().eval()(**prompts, multimask_output=False)
    sizes = [inputs[name] for name in ("original_sizes", "reshaped_input_sizes") if name in inputs]
    masks = processor.image_processor.post_process_masks(outputs.pred_masks, *(size.tolist() for size in sizes))[0]
    pairs = [(mask.numpy(), quality.numpy()) for mask, quality in zip(masks, outputs.iou_scores[0])]  # noqa: B905
    return _masks(pairs, inputs["pixel_values"][0])


EXAMPLES = {
    "ram": ram,
    "groundingdino": groundingdino,
    "transformers_detector": transformers_detector,
    "segment_anything": segment_anything,
    "sam2": sam2,
    "transformers_segmenter": transformers_segmenter,
}


def _outputs(module: Any) -> list[Any]:
    """Return a list to which each call of a module will add its output."""
    found: list[Any] = []
    module.register_forward_hook(lambda _module, _inputs, output: found.append(output))
    return found


@contextmanager
def _recorded_topk(count: int) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that will hold the positions of the image that a detector picks for its `count` queries, and
    their scores, highest first."""
    import torch

    picked: dict[str, Any] = {}
    original = torch.topk

    def topk(values: Any, k: int, *arguments: Any, **named: Any) -> Any:
        found = original(values, k, *arguments, **named)
        if k == count:
            picked.update(picked=found[1][0], picked_scores=found[0][0])
        return found

    torch.topk = topk  # type: ignore[assignment]
    try:
        yield picked
    finally:
        torch.topk = original


def _masks(pairs: list[Any], pixels: Any) -> Example:
    """Return the numbers of a segmenter from a mask `[1, H, W]` and a predicted IoU `[1]` for each box."""
    import numpy as np

    masks = np.stack([np.asarray(mask[0]) > 0 for mask, _ in pairs])
    packed = np.packbits(masks, axis=-1)
    return {"pixels": pixels, "masks": packed, "predicted_iou": np.array([float(one[0]) for _, one in pairs])}, {}


def _check_loaded(
    model: Any, weights: str, unused: tuple[str, ...] = (), renamed: dict[str, str] | None = None
) -> None:
    """Raise `ValueError` if the authors' loader, which may skip what does not fit, left a parameter as it was."""
    import torch

    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = state.get("model", state)
    for old, new in (renamed or {}).items():
        state = {name.replace(old, new): tensor for name, tensor in state.items()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if not name.startswith(unused) and (name not in state or not torch.equal(parameter.data, state[name].float())):
            raise ValueError(f"the authors' loader did not load {name} from these weights")


def _version(name: str) -> str:
    """Return the version of a package, with its commit if it was installed from git."""
    for known in (name, name.replace("_", "-"), f"{name}-py"):
        try:
            found = metadata.distribution(known)
        except metadata.PackageNotFoundError:
            continue
        commit = json.loads(found.read_text("direct_url.json") or "{}").get("vcs_info", {}).get("commit_id", "")
        return f"{found.version} ({commit[:12]})" if commit else found.version
    return str(getattr(sys.modules.get(name), "__version__", "of unknown version"))


def main(folder: Path) -> None:
    """Run the example of FOLDER/job.json."""
    here = Path(__file__).resolve().parent  # pad's files beside this one must not be taken for the authors' packages
    sys.path[:] = [entry for entry in sys.path if not entry or Path(entry).resolve() != here]
    job = json.loads((folder / "job.json").read_text("utf-8"))
    try:
        import numpy as np
        import torch

        # The authors' loaders would unpickle a checkpoint, with versions of torch before 2.6.
        torch.load = partial(torch.load, weights_only=True)
        with torch.no_grad():
            arrays, facts = EXAMPLES[job["example"]](job, folder)
    except ImportError as error:
        facts = {"missing": str(error)}
    else:
        numbers: dict[str, Any] = {name: np.asarray(value) for name, value in arrays.items()}
        np.savez(folder / "arrays.npz", **numbers)
    names = ["torch", "torchvision", "transformers", "timm", "numpy", "pillow"]
    versions = {name: _version(name) for name in [job["package"], *names]}
    facts = {**facts, "python": platform.python_version(), "versions": versions}
    (folder / "result.json").write_text(json.dumps(facts), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
