"""The types of the names in `__init__.py`, which are imported when they are first used."""

from pad_pipeline.errors import UserError as UserError
from pad_pipeline.geometry import View as View
from pad_pipeline.images import BadImage as BadImage
from pad_pipeline.labels import LabelEmbedder as LabelEmbedder
from pad_pipeline.report.notebook import Annotated as Annotated
from pad_pipeline.shards.reader import open_shards as open_shards
from pad_pipeline.training.chat import Chat as Chat
from pad_pipeline.training.dataset import PatchDataset as PatchDataset
from pad_pipeline.training.losses import PatchLoss as PatchLoss
from pad_pipeline.workflows.api import Annotator as Annotator
from pad_pipeline.workflows.api import analyze as analyze
from pad_pipeline.workflows.api import annotate as annotate
from pad_pipeline.workflows.api import build as build
from pad_pipeline.workflows.api import evaluate as evaluate
from pad_pipeline.workflows.api import evaluate_labels as evaluate_labels
from pad_pipeline.workflows.api import load as load
from pad_pipeline.workflows.api import open_llava as open_llava
from pad_pipeline.workflows.api import samples as samples
from pad_pipeline.workflows.api import train as train
from pad_pipeline.workflows.api import write_report as write_report
from pad_pipeline.workflows.models.settings import ModelSettings as ModelSettings
from pad_pipeline.workflows.models.settings import load_models as load_models

__version__: str
