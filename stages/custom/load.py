"""Find the class that the user's TOML names, fill its settings, make the model, and hash its code and files.

Only a TOML file that the user names can cause an import. The class names in a run.json are compared, never imported.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Collection
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, packages_distributions, version
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from pad_pipeline.errors import UserError
from pad_pipeline.stages.compute import ComputeSettings
from pad_pipeline.stages.custom.fields import CustomFields
from pad_pipeline.weights import file_sha256

_CLASS = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")
_REMEDY = "install its package into this environment, or put its folder on PYTHONPATH"


Custom = TypeVar("Custom", bound=CustomFields)


def pinned(custom: Custom, folder: Path, where: str = "") -> Custom:
    """Return `custom` with everything resolved, once, on the machine where the run begins: the class of an entry point,
    defaults for the class's settings that are left out, absolute paths, and the version of its code.

    Args:
        custom: the section of the TOML file.
        folder: the folder that paths are relative to.
        where: the name of the file, for errors.

    Raises:
        UserError: there is no such class, or it refuses its settings.
    """
    prefix = f"{where}: " if where else ""
    name = custom.class_ or _entry_point(custom, prefix).value
    resolved = custom.model_copy(update={"class_": name, "entry_point": ""})
    kind = find_class(resolved, prefix, custom.field, custom.class_ or custom.entry_point)
    settings = _settings(resolved, kind, folder, prefix)
    if settings is None:
        return resolved.model_copy(update={"code": code_of(resolved)})
    try:
        values = json.loads(settings.model_dump_json())
    except (ValueError, TypeError) as error:  # pydantic's errors are ValueErrors
        rule = f"run.json can't hold them ({type(error).__name__}: {str(error)[:200]})"
        raise UserError(f"{prefix}{custom.section}.settings", "{...}", rule, "give them types that JSON has") from error
    resolved = resolved.model_copy(update={"settings": values, "code": code_of(resolved)})
    if _settings(resolved, kind, folder, prefix) != settings:
        rule = "they are not the same after they were written as JSON, as run.json has them (a secret, for instance)"
        raise UserError(f"{prefix}{custom.section}.settings", "{...}", rule, "give them types that JSON has")
    return resolved


def _entry_point(custom: CustomFields, prefix: str) -> EntryPoint:
    group = f"pad.{custom.section}s"
    known = {point.name: point for point in entry_points(group=group)}
    if custom.entry_point not in known:
        rule = f"no installed package has an entry point of that name in {group}"
        names = ", ".join(sorted(known))
        remedy = f"name one of {names}" if names else "install the package that brings it"
        raise UserError(f"{prefix}{custom.section}.entry_point", custom.entry_point, rule, remedy)
    return known[custom.entry_point]


def find_class(custom: CustomFields, prefix: str = "", field: str = "", value: str = "") -> type[Any]:
    """Import the class and return it.

    Args:
        custom: settings with a `class_`.
        prefix: text before the field in errors, such as the name of the file.
        field: the setting by which the user named the class, for errors; by default `class`.
        value: the value of that setting.

    Raises:
        UserError: the class can't be imported, is no class, or lacks the method.
    """
    field, value = prefix + (field or custom.field), value or custom.class_
    if not _CLASS.fullmatch(custom.class_):
        raise UserError(field, value, "it should be package.module:Class", "write it so")
    module_name, _, name = custom.class_.partition(":")
    try:
        module = importlib.import_module(module_name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a foreign module may raise anything when it is imported
        rule = f"{module_name} can't be imported ({type(error).__name__}: {str(error)[:200]})"
        raise UserError(field, value, rule, _REMEDY) from error
    kind = getattr(module, name, None)
    if not inspect.isclass(kind):
        raise UserError(field, value, f"there is no class {name} in {module_name}", "correct the name")
    if not callable(getattr(kind, custom.method, None)):
        rule = f"the class has no method {custom.method}, which a {custom.section} should have"
        raise UserError(field, value, rule, "see stages/custom/protocol.py")
    return kind


def _settings(custom: CustomFields, kind: type[Any], folder: Path, prefix: str = "") -> BaseModel | None:
    """Return an instance of the class's own `Settings`; None if the class has none."""
    field = f"{prefix}{custom.section}.settings"
    model = getattr(kind, "Settings", None)
    if model is None:
        if custom.settings:
            remedy = "leave them out, or give the class an attribute Settings, a pydantic model"
            raise UserError(field, ", ".join(custom.settings), f"{custom.class_} takes no settings", remedy)
        return None
    if not (inspect.isclass(model) and issubclass(model, BaseModel)):
        rule = f"the attribute Settings of {custom.class_} is no pydantic model"
        raise UserError(field, "{...}", rule, "make it a subclass of pydantic.BaseModel")
    values = dict(custom.settings)
    for name, entry in model.model_fields.items():
        if isinstance(values.get(name), str) and Path in (entry.annotation, *get_args(entry.annotation)):
            values[name] = str((folder / Path(values[name]).expanduser()).absolute())
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join([field, *map(str, first["loc"])])
        value = "{...}" if isinstance(first["input"], dict) else first["input"]
        said = {"missing": "it is missing", "extra_forbidden": "there is no such setting"}.get(first["type"])
        raise UserError(name, value, said or first["msg"].removeprefix("Value error, "), "correct it") from error


def make(custom: CustomFields, compute: ComputeSettings) -> Any:
    """Make the user's model; this is called in the worker that runs it.

    Raises:
        UserError: it can't be made here, or its code differs from the code that the run began with.
    """
    kind = find_class(custom)
    if custom.code and (found := code_of(custom)) != custom.code:
        rule = f"its code here is {found}, and where the run was begun {custom.code}"
        raise UserError(custom.field, custom.class_, rule, "install the same version on every node")
    settings = _settings(custom, kind, Path.cwd())
    try:
        named = {"compute": compute} if "compute" in _parameters(kind) else {}
        return kind(**named) if settings is None else kind(settings, **named)
    except UserError:
        raise
    except Exception as error:
        rule = f"it can't be made ({type(error).__name__}: {str(error)[:300]})"
        raise UserError(custom.field, custom.class_, rule, "mend the class, or its settings") from error


def _parameters(kind: type[Any]) -> Collection[str]:
    try:
        return inspect.signature(kind).parameters
    except ValueError:  # a class of a compiled extension has no signature
        return ()


def code_of(custom: CustomFields) -> str:
    """Return `package.module:Class@version+hash`. The version is that of the installed distribution, if there is one;
    the hash is a short sha256 over all Python files of the top-level package, or over the file of a single module."""
    module_name = custom.class_.partition(":")[0]
    top = module_name.partition(".")[0]
    digest, release = hashlib.sha256(), ""
    try:
        if getattr(sys.modules[top], "__file__", None) and hasattr(sys.modules[top], "__path__"):
            root = Path(str(sys.modules[top].__file__)).parent
            files = sorted(root.rglob("*.py"))
        else:
            files = [Path(str(sys.modules[module_name].__file__))]
            root = files[0].parent
        for path in files:
            digest.update(path.relative_to(root).as_posix().encode() + hashlib.sha256(path.read_bytes()).digest())
    except OSError as error:
        rule = f"the code of {module_name} can't be read ({error.strerror})"
        raise UserError(custom.field, custom.class_, rule, _REMEDY) from error
    for name in packages_distributions().get(top, [])[:1]:
        try:
            release = version(name)
        except PackageNotFoundError:
            release = ""
    return f"{custom.class_}@{release}+{digest.hexdigest()[:12]}"


def fingerprints(custom: CustomFields) -> dict[str, str]:
    """Return hashes of what affects the model's results beside code and settings: the sha256 of each file that a
    setting of type `Path` names, and what the class's `fingerprint` returns.

    Raises:
        UserError: the class can't be found, or its `fingerprint` fails.
    """
    kind = find_class(custom)
    settings = _settings(custom, kind, Path.cwd())
    hashes: dict[str, str] = {name: file_sha256(path) for name, path in files(custom).items()}
    if callable(fingerprint := getattr(kind, "fingerprint", None)):
        try:
            said = fingerprint(settings) if settings is not None else fingerprint()
        except UserError:
            raise
        except Exception as error:
            rule = f"its fingerprint fails ({type(error).__name__}: {str(error)[:300]})"
            raise UserError(custom.field, custom.class_, rule, "mend the class, or its settings") from error
        if not isinstance(said, dict) or not all(isinstance(part, str) for item in said.items() for part in item):
            rule = f"its fingerprint gives {type(said).__name__}, and should give a dict of texts"
            raise UserError(custom.field, custom.class_, rule, "see stages/custom/protocol.py")
        hashes |= said
    return {f"{custom.section}_{name}": value for name, value in sorted(hashes.items())}


def files(custom: CustomFields) -> dict[str, Path]:
    """Return the files that settings of type `Path` name, by the name of the setting."""
    settings = _settings(custom, find_class(custom), Path.cwd())
    values = {} if settings is None else {name: getattr(settings, name) for name in type(settings).model_fields}
    return {name: path for name, path in values.items() if isinstance(path, Path) and path.is_file()}


def module_file(custom: CustomFields) -> Path:
    """Return the Python file that defines the class."""
    return Path(str(sys.modules[find_class(custom).__module__].__file__))
