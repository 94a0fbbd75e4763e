"""pad builds the Patch-Aligned Dataset of arXiv 2505.17316 and trains projectors on it.

The names in `__all__` are the front door: `import pad_pipeline as pad`, then `pad.annotate`, `pad.build`, `pad.load`,
`pad.train`, `pad.analyze`. They are imported when they are first used, so that `import pad_pipeline` takes no time.

The modules beside this one know nothing of Ray and run no annotation model. Annotation is in `pad_pipeline.stages`,
and what the commands do is in `pad_pipeline.workflows`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_API = "pad_pipeline.workflows.api"
_HOMES = {
    "Annotated": "pad_pipeline.report.notebook",
    "Annotator": _API,
    "BadImage": "pad_pipeline.images",
    "Chat": "pad_pipeline.training.chat",
    "LabelEmbedder": "pad_pipeline.labels",
    "ModelSettings": "pad_pipeline.workflows.models.settings",
    "PatchDataset": "pad_pipeline.training.dataset",
    "PatchLoss": "pad_pipeline.training.losses",
    "UserError": "pad_pipeline.errors",
    "View": "pad_pipeline.geometry",
    "analyze": _API,
    "annotate": _API,
    "build": _API,
    "evaluate": _API,
    "evaluate_labels": _API,
    "load": _API,
    "load_models": "pad_pipeline.workflows.models.settings",
    "open_llava": _API,
    "open_shards": "pad_pipeline.shards.reader",
    "samples": _API,
    "train": _API,
    "write_report": _API,
}
"""Name -> the module that defines it; `__init__.pyi` says the same to type checkers."""
__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
