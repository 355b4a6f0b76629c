"""The parameters of a class or function, read from its source file, so that options are checked without importing it.

Importing torch and Lightning takes seconds, and a misspelt option deserves an answer at once.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, Literal, NamedTuple, Optional, Union

# What a config can hold in place of an object: everything but null.
Instance = Mapping[str, Any] | Sequence[Any] | str | float | bool
# What annotations are made of. A config has lists for all that can be iterated over, and text for paths.
_KNOWN: dict[str, Any] = {
    **{kind.__name__: kind for kind in (int, float, str, bool, tuple)},
    **dict.fromkeys(("Iterable", "Sequence", "Collection", "List", "list"), Sequence),
    **dict.fromkeys(("Mapping", "Dict", "dict"), Mapping),
    "Any": Any,
    "object": Any,
    "Literal": Literal,
    "Optional": Optional,
    "Union": Union,
    "Tuple": tuple,
    "Path": str,
    "Instance": Instance,
}


class Signature(NamedTuple):
    """The types of parameters by their names, `Any` without an annotation; and whether other keywords are taken."""

    types: dict[str, Any]
    is_open: bool


@cache
def signature_of(target: str) -> Signature | None:
    """Return the parameters of what a dotted path names; None where there is no source to read them from."""
    found = _definition(target)
    return None if found is None or isinstance(found[0], ast.Assign) else _signature(*found)


def _signature(node: ast.stmt, module: "_Module") -> Signature:
    if isinstance(node, ast.FunctionDef):
        own = node.args
        parameters = [
            each for each in (*own.posonlyargs, *own.args, *own.kwonlyargs) if each.arg not in ("self", "cls")
        ]
        return Signature({each.arg: _type(each.annotation, module) for each in parameters}, own.kwarg is not None)
    assert isinstance(node, ast.ClassDef)
    methods = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    types: dict[str, Any] = {}
    is_open = "__new__" in methods
    if init := methods.get("__init__"):
        types, is_open = _signature(init, module)
        if not re.search(r"super\(\).__init__\(.*\*\*", ast.unparse(init)):  # its keywords do not go to its parents
            return Signature(types, is_open)
        is_open = False
    elif any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        types = {ast.unparse(each.target): _type(each.annotation, module) for each in fields}
    for base in node.bases:
        found = module.find(ast.unparse(base))
        parent = _signature(*found) if found and isinstance(found[0], ast.ClassDef) else Signature({}, True)
        types = {**parent.types, **types}
        is_open |= parent.is_open
    return Signature(types, is_open)


def _type(annotation: ast.expr | None, module: "_Module") -> Any:
    if annotation is None:
        return Any
    text = ast.unparse(annotation)
    if "Literal" not in text:  # which has text in quotes, and dots in it
        names = text.replace("'", "")
        text = re.sub(r"[\w.]+\.(\w+)", lambda found: found[1] if found[1] in _KNOWN else "Instance", names)
    try:
        return eval(text, {"__builtins__": {}}, _Names(module))
    except Exception:  # of an annotation that is more than names and brackets
        return Any


class _Names(dict[str, Any]):
    """What the names in a module's annotations mean."""

    def __init__(self, module: "_Module") -> None:
        super().__init__(_KNOWN)
        self.module = module

    def __missing__(self, name: str) -> Any:
        found = self.module.find(name)
        if found and isinstance(found[0], ast.Assign):  # another name for a type
            return _type(found[0].value, found[1])
        return Instance


class _Module:
    def __init__(self, name: str, path: Path) -> None:
        self.tree = ast.parse(path.read_bytes())
        self.package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def find(self, name: str) -> tuple[ast.stmt, "_Module"] | None:
        """Return the class, function or assignment of this name, and the module that it is in."""
        for node in ast.walk(self.tree):  # also below `if TYPE_CHECKING`
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and node in self.tree.body:
                return node, self
            if isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == [name]:
                return node, self
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    if name == (alias.asname or alias.name):
                        source = resolve_name("." * node.level + (node.module or ""), self.package)
                        return _definition(f"{source}.{alias.name}")
        return None


def _definition(target: str) -> tuple[ast.stmt, _Module] | None:
    name, _, attribute = target.rpartition(".")
    module = _module(name)
    return module.find(attribute) if module else None


@cache
def _module(name: str) -> _Module | None:
    """Find a module's source, without importing the packages that it is in, as `importlib.util.find_spec` would."""
    folders, spec = None, None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), folders)
        if spec is None:
            return None
        folders = spec.submodule_search_locations
    path = Path(spec.origin or "") if spec else Path()
    return _Module(name, path) if path.suffix == ".py" else None
