"""Functions whose results are cached under keys made from their arguments."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, Generic, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Removed = TypeVar("Removed")


@dataclass(frozen=True, slots=True)
class KeyTemplates:
    """A key and tags such as "user:{id}", to be filled in with the arguments of a function's calls."""

    signature: inspect.Signature
    key: str
    tags: tuple[str, ...]

    @classmethod
    def of(cls, function: Callable[..., Any], key: str, tags: Sequence[str]) -> KeyTemplates:
        """ValueError when a name in braces is no parameter of the function."""
        signature = inspect.signature(function)
        for template in (key, *tags):
            for _, field, _, _ in Formatter().parse(template):
                name = None if field is None else field.split(".")[0].split("[")[0]
                if name is not None and name not in signature.parameters:
                    raise ValueError(
                        f"{template!r} names {name!r}, which is no parameter of {function.__qualname__}"
                    )
        return cls(signature, key, tuple(tags))

    def filled_in(self, arguments: Sequence[Any], keywords: dict[str, Any]) -> tuple[str, tuple[str, ...]]:
        """The key and the tags of a call. TypeError when the function could not be called so."""
        bound = self.signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        return self.key.format(**bound.arguments), tuple(tag.format(**bound.arguments) for tag in self.tags)


class Cached(Generic[Arguments, Result, Removed]):
    """A function through the cache. Call it as the function; `invalidate` removes what a call is answered
    with.

    `read` is given the key, the tags, and the call of the function itself; `remove` the key.
    """

    def __init__(
        self,
        function: Callable[Arguments, Result],
        templates: KeyTemplates,
        read: Callable[[str, tuple[str, ...], Callable[[], Any]], Any],
        remove: Callable[[str], Removed],
        bound: tuple[Any, ...] = (),
    ) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._templates = templates
        self._read = read
        self._remove = remove
        self._bound = bound

    def __call__(self, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Result:
        given = (*self._bound, *arguments)
        key, tags = self._templates.filled_in(given, keywords)
        result: Result = self._read(key, tags, functools.partial(self._function, *given, **keywords))
        return result

    def key(self, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> str:
        """The key under which the result of such a call is cached."""
        return self._templates.filled_in((*self._bound, *arguments), keywords)[0]

    def invalidate(self, *arguments: Arguments.args, **keywords: Arguments.kwargs) -> Removed:
        """Removes the result of such a call; whether there was one."""
        return self._remove(self.key(*arguments, **keywords))

    def __get__(self, instance: Any, owner: Any = None) -> Cached[..., Result, Removed]:
        if instance is None:
            return self
        return Cached(self._function, self._templates, self._read, self._remove, (instance,))
