"""The parameters of a class or function, read from its source file, so that options are checked without importing it.

Importing torch and Lightning takes seconds, and a misspelt option deserves an answer at once.
"""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import PathFinder
from importlib.util import resolve_name
from pathlib import Path
from typing import Any, Literal, Optional, Union

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Instance:
    """Stand for a class that we know nothing about: an option may be anything but null."""

    def __class_getitem__(cls, item: object) -> type["Instance"]:
        return cls

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def check(value: object) -> object:
            if value is None:
                raise PydanticCustomError("instance", "Input should be a group of keys")
            return value

        return core_schema.no_info_plain_validator_function(check)


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
    "None": None,
}


@dataclass
class Signature:
    """Parameters and their types.

    Args:
        types: of each parameter; `Any` where it has no annotation.
        is_open: whether it takes other keywords, too.
    """

    types: dict[str, Any] = field(default_factory=dict)
    is_open: bool = False


@cache
def signature_of(target: str) -> Signature | None:
    """Return the parameters of what a dotted path names; None where there is no source to read them from.

    >>> list(signature_of("genstab.errors.check_choice").types)
    ['name', 'value', 'allowed']
    >>> signature_of("math.sin") is None
    True
    """
    found = _definition(target)
    return None if found is None or isinstance(found[0], ast.Assign) else _signature(*found)


def _signature(node: ast.stmt, module: "_Module") -> Signature:
    if isinstance(node, ast.FunctionDef):
        own = node.args
        parameters = [*own.posonlyargs, *own.args, *own.kwonlyargs]
        types = {each.arg: _type(each.annotation, module) for each in parameters if each.arg not in ("self", "cls")}
        return Signature(types, own.kwarg is not None)
    assert isinstance(node, ast.ClassDef)
    body = {each.name: each for each in node.body if isinstance(each, ast.FunctionDef)}
    signature = Signature()
    if init := body.get("__init__"):
        signature = _signature(init, module)
        calls = [each for each in ast.walk(init) if isinstance(each, ast.Call)]
        parents = [call for call in calls if ast.unparse(call.func) == "super().__init__"]
        if not any(
            keyword.arg is None for call in parents for keyword in call.keywords
        ):  # no super().__init__(**kwargs)
            return signature
        signature.is_open = False
    elif "__new__" in body:
        return Signature(is_open=True)
    elif any("dataclass" in ast.unparse(each) for each in node.decorator_list):
        fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
        signature = Signature({ast.unparse(each.target): _type(each.annotation, module) for each in fields})
    for base in node.bases:
        found = module.find(ast.unparse(base))
        parent = _signature(*found) if found and isinstance(found[0], ast.ClassDef) else Signature(is_open=True)
        signature.types = {**parent.types, **signature.types}
        signature.is_open |= parent.is_open
    return signature


def _type(annotation: ast.expr | None, module: "_Module") -> Any:
    if annotation is None:
        return Any
    try:
        return eval(ast.unparse(_Simple().visit(annotation)), {"__builtins__": {}}, _Names(module))
    except Exception:  # of an annotation that is more than names and brackets
        return Any


class _Simple(ast.NodeTransformer):
    """Write an annotation in names alone: without quotes and dots."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:  # the name that ast wants
        return ast.Name(node.attr if node.attr in _KNOWN else "Instance")  # typing.Optional; torch.device

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        return self.visit(ast.parse(node.value, mode="eval").body) if isinstance(node.value, str) else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        return node if ast.unparse(node.value).endswith("Literal") else self.generic_visit(node)


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
        self.name, self.tree = name, ast.parse(path.read_bytes())
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
    module = _module(name) if name else None
    return module.find(attribute) if module else None


@cache
def _module(name: str) -> _Module | None:
    """Find a module's source, without importing the packages that it is in, as `importlib.util.find_spec` would."""
    folders = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:count]), folders)
        if spec is None:
            return None
        folders = spec.submodule_search_locations
    path = Path(spec.origin or "") if spec else Path()
    return _Module(name, path) if path.suffix == ".py" else None
