"""Functions and classes of your own by name: `package.module:name`, or `path/to/file.py:name`."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from stipule.errors import RecipeError

FORMS = "package.module:name or path/to/file.py:name"


def is_reference(name: object) -> bool:
    """Whether a setting names an object of your own, not a built-in part."""
    return isinstance(name, str) and name.count(":") == 1 and all(name.split(":"))


def import_object(reference: str, what: str) -> Any:
    """The object of this name; paths and modules are looked for in the working directory.

    `what` starts the message, e.g. "reward.functions". Raises RecipeError, with the cause, if the name has another
    form, the file or module cannot be imported, or it does not have the object.
    """
    if not is_reference(reference):
        raise RecipeError(f"{what} is {reference!r}; it must be {FORMS}")
    source, attribute = reference.rsplit(":", 1)
    try:
        module = _import_file(Path(source)) if source.endswith(".py") else _import_module(source)
    except Exception as cause:  # the code of the user may raise anything
        raise RecipeError(
            f"{what} is {reference!r}, which cannot be imported: {type(cause).__name__}: {cause}; correct the code, "
            "or name a file or a module that Python can import from the working directory"
        ) from cause
    if not hasattr(module, attribute):
        public = [name for name, value in vars(module).items() if _is_defined_in(module, value)]
        nearest = ", ".join(difflib.get_close_matches(attribute, public, n=1) or public[:5])
        raise RecipeError(
            f"{what} is {reference!r}, but {source} has no {attribute}; it has {nearest or 'nothing public'}; "
            "correct the name"
        )
    return getattr(module, attribute)


def reference_of(value: Any) -> str | None:
    """The name under which `import_object` returns this function or class; None if it has none.

    An object of the running script has the path of the script, so that another process can import it; one that was
    typed into an interpreter or a notebook is found in this process only. Closures and lambdas have no name.
    """
    name = getattr(value, "__qualname__", "")
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if module is None or "." in name or getattr(module, name, None) is not value:
        return None
    file = getattr(module, "__file__", None)
    if file is not None and module.__name__ in ("__main__", _module_name(Path(file))):
        path = Path(file).resolve()
        return f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}:{name}"
    return f"{module.__name__}:{name}"


def kind_of(part: Any) -> str:
    """The `kind` of a part of a recipe: the name of a built-in part, the reference of a class of your own.

    Raises RecipeError if the class has no name under which it can be imported again.
    """
    if _is_built_in(part):
        return str(part.kind)
    reference = reference_of(type(part))
    if reference is None:
        raise RecipeError(
            f"the class {type(part).__qualname__} has no name under which it can be imported again; define it at the "
            "top level of a file"
        )
    return reference


def settings_of(value: Any) -> Any:
    """Settings as plain data: `dataclasses.asdict` with lists for tuples, and with the `kind` of parts of your own."""
    if isinstance(value, Mapping):
        return {key: settings_of(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(settings_of, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    if _is_built_in(value):
        return {field.name: settings_of(getattr(value, field.name)) for field in fields(value)}
    return {"kind": kind_of(value)} | {key: settings_of(inner) for key, inner in asdict(value).items() if key != "kind"}


def _is_built_in(part: Any) -> bool:
    return type(part).__module__.partition(".")[0] == __name__.partition(".")[0]


def source_hash(value: Any) -> str | None:
    """SHA-256, in hexadecimal, of the file that defines a function or a class; None if it has no file."""
    try:
        file = inspect.getsourcefile(value)
    except TypeError:
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file and Path(file).is_file() else None


def _import_module(name: str) -> ModuleType:
    if os.getcwd() not in sys.path:  # `python -m` also adds the working directory
        sys.path.insert(0, os.getcwd())
    return importlib.import_module(name)


def _import_file(file: Path) -> ModuleType:
    """The module of a file. It is executed once in a process, and not a second time if it is the running script."""
    path = file.resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {file} in the working directory {os.getcwd()}")
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and Path(main).resolve() == path:
        return sys.modules["__main__"]
    name = _module_name(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before execution, as dataclasses look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _module_name(file: Path) -> str:
    """A name that no other file has: two folders may both have a file rewards.py."""
    return f"{file.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"


def _is_defined_in(module: ModuleType, value: Any) -> bool:
    return getattr(value, "__module__", None) == module.__name__ and not getattr(value, "__name__", "_").startswith("_")
