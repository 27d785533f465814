"""The settings of learning rules: each is said once, in the class that has it, as an attribute with a check.

The constructor, its signature, ``repr`` and :meth:`Checked.settings` come from what is said there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from typing_extensions import dataclass_transform

from ..arguments.checks import one_of, real_number, whole_number
from ..arguments.choices import chosen

# Of a rule, the name of one of its settings and a value for it: what is kept of the value; ValueError or TypeError, by
# the name, if it is wrong.
Check = Callable[[Any, str, Any], Any]
REQUIRED = inspect.Parameter.empty


def setting(
    check: Check,
    *,
    default: Any = REQUIRED,
    kw_only: bool = True,
    decides: bool = True,
    kind: type[Setting] | None = None,
) -> Any:
    """A setting: the right-hand side of ``name: type = setting(...)`` in a class that derives from :class:`Checked`.

    Args:
        check: asked for every value, whenever it is set; see :data:`Check`.
        default: of a rule that is made without it. Checked, too.
        kw_only: whether it must be said by name when a rule is made.
        decides: whether results depend on it, so that a run must be resumed with the same.
        kind: a class of settings that keep their values elsewhere; None: :class:`Setting`.
    """
    return (kind or Setting)(check, default, kw_only, decides)


class Setting:
    """What :func:`setting` puts into a class; a value lies in the instance's ``__dict__``, under the same name, where
    it is read without this class: a step reads two dozen of them."""

    name: str
    annotation: Any

    def __init__(self, check: Check, default: Any, kw_only: bool, decides: bool) -> None:
        self.check = check
        self.default = default
        self.kw_only = kw_only
        self.decides = decides

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name
        self.annotation = inspect.get_annotations(owner).get(name, REQUIRED)

    def __get__(self, rule: Checked | None, owner: type | None = None) -> Any:
        if rule is None:
            return self
        raise AttributeError(f"{type(rule).__name__}.{self.name} is not set yet")

    def set(self, rule: Checked, value: Any) -> None:
        """Check ``value`` and keep it."""
        rule._wrong.pop(self.name, None)
        try:
            self.keep(rule, self.check(rule, self.name, value))
        except (ValueError, TypeError) as error:
            if not rule._is_made:
                raise
            rule._wrong[self.name] = error

    def keep(self, rule: Checked, value: Any) -> None:
        vars(rule)[self.name] = value

    def parameter(self) -> inspect.Parameter:
        """Of the constructor."""
        kind = inspect.Parameter.KEYWORD_ONLY if self.kw_only else inspect.Parameter.POSITIONAL_OR_KEYWORD
        return inspect.Parameter(self.name, kind, default=self.default, annotation=self.annotation)


@dataclass_transform(kw_only_default=True, field_specifiers=(setting,))
class Checked:
    """What has settings, and is made from them.

    A setting that is wrong when it is made is refused at once. One that is set later is refused by the next call that
    asks :meth:`refuse_wrong_settings`, and keeps its value until then: settings that fit together may be set one after
    the other.
    """

    _settings: ClassVar[dict[str, Setting]] = {}  # by name, those of base classes first
    _made_from: ClassVar[inspect.Signature]
    _wrong: dict[str, Exception]  # the errors of settings that were set since it was made, by name
    _is_made: bool

    def __init_subclass__(cls, **others: Any) -> None:
        super().__init_subclass__(**others)
        owned = [vars(base) for base in reversed(cls.__mro__)]
        cls._settings = {name: each for of in owned for name, each in of.items() if isinstance(each, Setting)}
        parameters = [each.parameter() for each in cls._settings.values()]
        cls._made_from = inspect.Signature(sorted(parameters, key=lambda parameter: parameter.kind))
        if cls.__init__ is Checked.__init__:
            cls.__signature__ = cls._made_from  # type: ignore[attr-defined]
        else:
            of_init = inspect.signature(cls.__init__)
            cls.__signature__ = of_init.replace(parameters=[*of_init.parameters.values()][1:])  # type: ignore[attr-defined]

    def __new__(cls, *_arguments: Any, **_settings: Any) -> Any:
        made = super().__new__(cls)
        vars(made).update(_wrong={}, _is_made=False)
        return made

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        try:
            given = self._made_from.bind(*arguments, **settings)
        except TypeError as error:
            raise TypeError(f"{type(self).__name__}: {error}; it takes {self._made_from}") from None
        given.apply_defaults()
        for name, value in given.arguments.items():
            setattr(self, name, value)
        self.refuse_wrong_settings()
        self._is_made = True

    def __setattr__(self, name: str, value: Any) -> None:
        each = self._settings.get(name)
        if each is None:
            super().__setattr__(name, value)
        else:
            each.set(self, value)

    def refuse_wrong_settings(self) -> None:
        """Raise the ValueError or TypeError of a setting that is wrong, or does not go with another one."""
        for error in self._wrong.values():
            raise type(error)(*error.args)

    def settings(self) -> dict[str, Any]:
        """The settings that results depend on, by name."""
        return {name: getattr(self, name) for name, each in self._settings.items() if each.decides}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"


# ---------------------------------------------------------------------------------------------------------------
# Checks


def word(of: Any) -> Check:
    """One of the values of a type of ``choices.py``."""
    return lambda _, name, value: chosen(name, value, of)


def flag(_: Any, name: str, value: Any) -> bool:
    return one_of(name, value, (True, False))


def whole(least: int) -> Check:
    return lambda _, name, value: whole_number(name, value, least)


def number(allowed: Callable[[float], bool], wanted: str) -> Check:
    """A finite number for which ``allowed`` holds, ``wanted`` in words."""
    return lambda _, name, value: real_number(name, value, allowed, wanted)
