"""What a class consists of, as its author wrote it: without what Python and pydantic generated from that.

Rules: generated parts are left out because they name the class by its id or hold caches, and so differ at each run.
"""

from __future__ import annotations

import dataclasses
import enum
import types
from typing import Any

__all__ = ["members_of"]

_SKIPPED = {
    *(
        "__dict__",
        "__weakref__",
        "_abc_impl",
        "__module__",
        "__firstlineno__",
        "__static_attributes__",
        "__signature__",
    ),
    *("__abstractmethods__", "__class_vars__", "__orig_bases__", "__subclasshook__", "__classcell__"),
}


def members_of(cls: type) -> dict[str, Any]:
    """Return the members of a class by name; what has no name of its own is in parentheses."""
    if isinstance(cls, enum.EnumMeta):
        return _enum_parts(cls)
    if hasattr(cls, "__pydantic_decorators__"):
        return _pydantic_parts(cls)
    return {name: item for name, item in vars(cls).items() if name not in _SKIPPED}


def _enum_parts(cls: type) -> dict[str, Any]:
    members: dict[str, Any] = {name: member._value_ for name, member in vars(cls)["_member_map_"].items()}
    own = {
        name: item
        for name, item in vars(cls).items()
        if isinstance(item, (types.FunctionType, property, classmethod))
    }
    return {
        "(members)": members,
        **{name: item for name, item in own.items() if name != "_generate_next_value_"},
    }


def _pydantic_parts(cls: type) -> dict[str, Any]:
    """Return what the author wrote, not what pydantic generated from it: generated parts name the class by its id."""
    parts = {
        name: item
        for name, item in vars(cls).items()
        if name not in _SKIPPED and not name.startswith(("__pydantic_", "__dataclass_", "__fields"))
    }
    decorators = vars(cls).get("__pydantic_decorators__")
    for kind in dataclasses.fields(decorators) if decorators is not None else ():
        for name, decorator in getattr(decorators, kind.name).items():
            parts[f"({kind.name}).{name}"] = (_unbound(decorator.func), _info(decorator.info))
    fields = vars(cls).get("__pydantic_fields__") or {}
    parts["(fields)"] = dict(fields)
    parts["(generic)"] = vars(cls).get("__pydantic_generic_metadata__")
    parts["(root)"] = vars(cls).get("__pydantic_root_model__")
    return parts


def _unbound(func: Any) -> Any:
    return getattr(func, "__func__", func)


def _info(info: Any) -> Any:
    if not dataclasses.is_dataclass(info):
        return info
    parts = {item.name: getattr(info, item.name, None) for item in dataclasses.fields(info)}
    return {name: part for name, part in parts.items() if name != "wrapped_property"}
