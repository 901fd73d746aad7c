"""What our code asks of a TensorRT module, written down while it runs.

`record` wraps a module that can run here (`tensorrt_rtx`, or a stand-in) so that each name that is read, set or called on it or
on its objects is noted; `check.py` then looks every note up in a real module that cannot run without a GPU.
"""

import enum
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

MODULE = "module"


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """One way in which our code uses TensorRT.

    Attributes:
        owner: the class whose attribute it is, by its name; `module` for the module's own.
        form: `get`, `set` or `call`.
        positional, keywords: what a call was given.
    """

    owner: str
    name: str
    form: Literal["get", "set", "call"]
    positional: int = 0
    keywords: tuple[str, ...] = ()


def record(module: ModuleType, uses: set[Use]) -> Any:
    """The module behind a wrapper that adds to `uses`."""
    return _Recorded(module, MODULE, uses)


class _Recorded:
    def __init__(self, target: Any, owner: str, uses: set[Use]) -> None:
        self.__dict__.update(_target=target, _owner=owner, _uses=uses)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        self._uses.add(Use(self._owner, name, "get"))
        if inspect.isclass(value):
            # A class that ours derive from must be the real one.
            return value if name == "ILogger" else _Recorded(value, value.__name__, self._uses)
        return _Called(value, self._owner, name, self._uses) if callable(value) else _wrapped(value, self._uses)

    def __setattr__(self, name: str, value: Any) -> None:
        self._uses.add(Use(self._owner, name, "set"))
        setattr(self._target, name, _bare(value))

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._uses.add(Use(self._owner, "__init__", "call", len(arguments), tuple(sorted(named))))
        return _wrapped(_call(self._target, arguments, named), self._uses)

    def __bytes__(self) -> bytes:
        return bytes(self._target)


class _Called:
    def __init__(self, function: Any, owner: str, name: str, uses: set[Use]) -> None:
        self._function, self._use, self._uses = function, (owner, name), uses

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self._uses.add(Use(*self._use, "call", len(arguments), tuple(sorted(named))))
        return _wrapped(_call(self._function, arguments, named), self._uses)


def _call(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return function(*map(_bare, arguments), **{name: _bare(value) for name, value in named.items()})


def _bare(value: Any) -> Any:
    return value.__dict__["_target"] if isinstance(value, _Recorded) else value


def _wrapped(value: Any, uses: set[Use]) -> Any:
    """Objects of the module are watched, too; numbers, texts, enum members and shapes are what they are."""
    kind = type(value)
    of_python = kind.__module__ in {"builtins", "numpy"} or isinstance(value, (enum.Enum, type))
    if of_python or hasattr(kind, "__members__") or kind.__name__ == "Dims":
        return value
    return _Recorded(value, kind.__name__, uses)
