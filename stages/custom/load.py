"""The base class of the settings for a user's own model: it imports the class, makes the model, and hashes its code.

Only a TOML file that the user names causes an import. The class names in a run.json are compared and never imported.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, get_args

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator

from pad_pipeline.errors import UserError
from pad_pipeline.images import DecodeSettings
from pad_pipeline.records import ImageRecord, Region, Shard, Tag
from pad_pipeline.stages.base import Stage
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.settings import StageSettings
from pad_pipeline.weights import ModelFile, file_sha256

SECTIONS = {"class", "entry_point"}
"""Settings that name a class. If a section of a models file has one of them, it describes a user's own model."""
_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_INSTALL = "install its package into this environment, or put its folder on PYTHONPATH"
_REPAIR = "repair the class, or its settings"


class CustomSettings(StageSettings):
    """Settings of a user's own model, which replaces one of pad's models."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    method: ClassVar[str]
    """The method that the class must have, see `pad_pipeline.stages.custom.protocol`."""
    stage: ClassVar[Callable[..., Stage[Any, Any]]]
    """The class of the stage that runs the model."""

    class_: str = Field("", alias="class")
    """`package.module:Class`. The package must be installed or on PYTHONPATH on each node."""
    entry_point: str = Field("", exclude=True)
    """The name of an entry point of an installed package, instead of `class`. Its group is `pad.detectors`,
    `pad.taggers`, `pad.segmenters` or `pad.grounders`."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Values for the class's own `Settings`. Values of type `Path` are relative to the TOML file."""
    code: str = Field("", exclude=True)
    """The result of `code_here` on the machine where the run began. A worker with other code refuses to run."""

    @model_validator(mode="after")
    def _one_name(self) -> Self:
        if bool(self.class_) == bool(self.entry_point):
            raise ValueError("either class or entry_point should name the class")
        return self

    @model_serializer(mode="wrap")
    def _as_in_toml(self, handler: Callable[[Self], dict[str, Any]]) -> dict[str, Any]:
        return {"class" if name == "class_" else name: value for name, value in handler(self).items()}

    @property
    def field(self) -> str:
        """The name of the setting that names the class, for errors."""
        return f"{self.section}.{'entry_point' if self.entry_point else 'class'}"

    @property
    def code_version(self) -> str:
        """See `StageSettings`."""
        return self.code

    def error(self, rule: str, remedy: str) -> UserError:
        """Return an error about the class."""
        return UserError(self.field, self.entry_point or self.class_, rule, remedy)

    @contextmanager
    def _user_code(self, failure: str, remedy: str) -> Iterator[None]:
        """Return a context that turns any exception of the user's code into a `UserError`."""
        try:
            yield
        except UserError:
            raise
        except (Exception, SystemExit) as error:
            raise self.error(f"{failure} ({type(error).__name__}: {str(error)[:300]})", remedy) from error

    def find_class(self) -> type[Any]:
        """Import and return the class; raise a `UserError` if this fails or if the class lacks the method."""
        if not _CLASS.fullmatch(self.class_):
            raise self.error("it should be package.module:Class", "correct the name")
        module_name, _, name = self.class_.partition(":")
        with self._user_code(f"{module_name} can't be imported", _INSTALL):
            module = importlib.import_module(module_name)
        kind = getattr(module, name, None)
        if not inspect.isclass(kind):
            raise self.error(f"there is no class {name} in {module_name}", "correct the name")
        if not callable(getattr(kind, self.method, None)):
            rule = f"the class has no method {self.method}, which a {self.section} should have"
            raise self.error(rule, "see stages/custom/protocol.py")
        return kind

    def own_settings(self, folder: Path = Path()) -> BaseModel | None:
        """Return an instance of the class's own `Settings`, if any, with paths relative to `folder`; else None.

        Raises:
            UserError: the class is not found, or a setting is wrong.
        """
        model = getattr(self.find_class(), "Settings", None)
        field = f"{self.section}.settings"
        if model is None:
            if self.settings:
                remedy = "leave them out, or give the class an attribute Settings, a pydantic model"
                raise UserError(field, ", ".join(self.settings), f"{self.class_} takes no settings", remedy)
            return None
        if not (inspect.isclass(model) and issubclass(model, BaseModel)):
            rule = f"the attribute Settings of {self.class_} is not a pydantic model"
            raise UserError(field, "{...}", rule, "make it a subclass of pydantic.BaseModel")
        values = dict(self.settings)
        for name, entry in model.model_fields.items():
            if isinstance(values.get(name), str) and Path in (entry.annotation, *get_args(entry.annotation)):
                values[name] = str((folder / Path(values[name]).expanduser()).absolute())
        try:
            return model.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join([field, *map(str, first["loc"])])
            value = "{...}" if isinstance(first["input"], dict) else first["input"]
            known = {"missing": "it is missing", "extra_forbidden": "there is no such setting"}
            rule = known.get(first["type"], first["msg"].removeprefix("Value error, "))
            raise UserError(name, value, rule, "correct it") from error

    def load(self, compute: ComputeSettings) -> Any:
        """Make the user's model, in the worker that runs it.

        Raises:
            UserError: the model can't be made, or its code differs from the code with which the run began.
        """
        kind = self.find_class()
        if self.code and (here := self.code_here()) != self.code:
            rule = f"its code is {here} here, and {self.code} where the run began"
            raise self.error(rule, "install the same version on every node")
        settings = self.own_settings()
        try:
            parameters = [*inspect.signature(kind).parameters]
        except ValueError:  # a class of a compiled extension has no signature
            parameters = []
        with self._user_code("it can't be made", _REPAIR):
            named = {"compute": compute} if "compute" in parameters else {}
            return kind(**named) if settings is None else kind(settings, **named)

    def code_here(self) -> str:
        """Return `package.module:Class@version+hash`, the version of the class's code on this machine.

        The version belongs to the installed distribution, if any. The hash is the first 12 digits of a sha256 over all
        Python files of the top-level package, or over the file of a single module.
        """
        module_name = self.class_.partition(":")[0]
        top = module_name.partition(".")[0]
        package, digest = sys.modules[top], hashlib.sha256()
        whole = hasattr(package, "__path__") and getattr(package, "__file__", None)
        file = Path(str((package if whole else sys.modules[module_name]).__file__))
        try:
            for path in sorted(file.parent.rglob("*.py")) if whole else [file]:
                name = path.relative_to(file.parent).as_posix()
                digest.update(name.encode() + hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise self.error(f"the code of {module_name} can't be read ({error.strerror})", _INSTALL) from error
        release = next(map(version, packages_distributions().get(top, [])), "")
        return f"{self.class_}@{release}+{digest.hexdigest()[:12]}"

    def _named_files(self) -> dict[str, Path]:
        """Return the existing files in settings of type `Path`, by the name of the setting."""
        values = dict(self.own_settings() or {})
        return {name: path for name, path in values.items() if isinstance(path, Path) and path.is_file()}

    def files(self) -> list[ModelFile]:
        """Return the module of the class, and each file in a setting of type `Path`."""
        module = ModelFile(self.field, self.code or self.class_, code=Path(inspect.getfile(self.find_class())))
        named = self._named_files().items()
        return [module, *(ModelFile(f"{self.section}.settings.{name}", str(path)) for name, path in named)]

    def fingerprints(self) -> dict[str, str]:
        """See `StageSettings`. These are the sha256 of `_named_files`, and the result of the class's `fingerprint`."""
        kind, settings = self.find_class(), self.own_settings()
        hashes = {name: file_sha256(path) for name, path in self._named_files().items()}
        if callable(fingerprint := getattr(kind, "fingerprint", None)):
            with self._user_code("its fingerprint fails", _REPAIR):
                more = fingerprint(settings) if settings is not None else fingerprint()
            if not isinstance(more, dict) or not all(isinstance(part, str) for item in more.items() for part in item):
                rule = f"its fingerprint returns a {type(more).__name__}, and should return a dict of str to str"
                raise self.error(rule, "see stages/custom/protocol.py")
            hashes |= more
        return {f"{self.section}_{name}": value for name, value in sorted(hashes.items())}

    def check(self) -> str:
        """Make the model and run it on a gray image, which detects most violations of the protocol."""
        row = ImageRecord("check", "check", key="check", width=64, height=48)
        with io.BytesIO() as sink:
            Image.new("RGB", (row.width, row.height), "gray").save(sink, "PNG")
            row.data, row.format = sink.getvalue(), "PNG"
        row.tags, row.regions = [Tag("thing", 1.0)], [Region("thing", (8.0, 8.0, 40.0, 40.0))]
        self.make(DecodeSettings(), ComputeSettings(precision="float32"))(Shard(0, [row]))
        if row.status == "failed":
            raise self.error(f"it fails on a gray image ({row.reason})", "repair the class")
        return ", ".join([self.code, *(f"{name} {value}" for name, value in self.fingerprints().items())])

    def make(self, decoding: DecodeSettings, compute: ComputeSettings) -> Stage[Any, Any]:
        """Make the stage with an instance of the class."""
        return self.stage(self, decoding, compute)


Custom = TypeVar("Custom", bound=CustomSettings)


def resolve_settings(custom: Custom, folder: Path, where: str) -> Custom:
    """Complete the settings from the TOML file `where`, on the machine where the run begins.

    The result names the class instead of an entry point, and has the version of the class's code. The class's own
    settings have all defaults, and paths that were relative to `folder` are absolute.

    Raises:
        UserError: the class is not found, or a setting is wrong.
    """
    try:
        custom = custom.model_copy(update={"class_": custom.class_ or _class_of_entry_point(custom)})
        if (settings := custom.own_settings(folder)) is not None:
            field, remedy = f"{custom.section}.settings", "give them types that JSON has"
            try:
                values = json.loads(settings.model_dump_json())
            except (ValueError, TypeError) as error:  # pydantic's errors are ValueErrors
                rule = f"run.json can't hold them ({type(error).__name__}: {str(error)[:200]})"
                raise UserError(field, "{...}", rule, remedy) from error
            custom = custom.model_copy(update={"settings": values})
            if custom.own_settings(folder) != settings:
                rule = "writing them to run.json as JSON and reading them again changes them (a secret, for instance)"
                raise UserError(field, "{...}", rule, remedy)
        return custom.model_copy(update={"entry_point": "", "code": custom.code_here()})
    except UserError as error:
        raise UserError(f"{where}: {error.field}", error.value, error.rule, error.remedy) from error


def _class_of_entry_point(custom: CustomSettings) -> str:
    group = f"pad.{custom.section}s"
    known = {point.name: point.value for point in entry_points(group=group)}
    if custom.entry_point not in known:
        names = ", ".join(sorted(known))
        remedy = f"name one of {names}" if names else "install the package that has it"
        raise custom.error(f"no installed package has an entry point of that name in {group}", remedy)
    return known[custom.entry_point]
