"""What a configuration may name: entries of a registry, or `python:package.module:name`.

An entry is a callable. Its keyword parameters are its options, further keys of the section that
names it: their names, types and defaults are read off its signature.
"""

import inspect
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any, Generic, TypeVar, cast, overload

from pydantic import ConfigDict, PydanticUserError, ValidationError, validate_call

from pipeline_local.errors import ConfigError, UserError, did_you_mean, first_line
from pipeline_local.user_input.user_code import import_named, reason
from pipeline_local.user_input.values import Strict, by_key, shorten, should_be

Entry = TypeVar("Entry", bound=Callable[..., Any])
_CONFIG = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
GIVEN = "given"
"""The name of what a program hands in: an entry that no user writes into a file."""
_NOTHING: Mapping[str, Any] = {}
_REGISTRIES: "weakref.WeakSet[Registry[Any]]" = weakref.WeakSet()
"""All that there are."""
Hint = Callable[[str, Sequence[str]], str]
"""(An option that an entry does not take, those that it does) -> what to do, in the same line."""
_UNREADABLE = (NameError, AttributeError, TypeError, ValueError, SyntaxError, PydanticUserError)
"""Raised for annotations that stand for no type."""
_FEW = 30
"""Names that fit into a message; docs/models.md has them all."""
_UNNAMED = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL)


class Registry(Generic[Entry]):
    """All entries that a key may name, and what options each takes.

    Example:
        >>> HEADS: Registry[Callable[..., Head]] = Registry("head.name", "head", given=["site"])
        >>> @HEADS.add("linear")
        ... def linear(site: Site, *, width: Annotated[int, Field(ge=1)] = 8) -> Head: ...
        >>> HEADS.find("linear")(site=site, **HEADS.options("linear", {"width": 16}))

    Args:
        key: what names an entry, such as `head.name`; options are keys of the same section.
        kind: an entry in one word, such as "head".
        given: parameters that the caller of an entry passes itself, by their names.
        slow: gives further entries by name; called when one of them, or all names, are asked for.
    """

    def __init__(
        self,
        key: str,
        kind: str,
        given: Collection[str] = (),
        slow: Callable[[], Mapping[str, Entry]] = dict,
    ) -> None:
        self.key = key
        self.kind = kind
        self.given = tuple(given)
        self._section = key.rpartition(".")[0]
        self._entries: dict[str, Entry] = {}
        self._slow = slow
        _REGISTRIES.add(self)

    @overload
    def add(self, name: str) -> Callable[[Entry], Entry]: ...

    @overload
    def add(self, name: str, entry: Entry) -> Entry: ...

    def add(self, name: str, entry: Entry | None = None) -> Entry | Callable[[Entry], Entry]:
        """Register an entry; without one, a decorator that does.

        Raises:
            ValueError: another module has an entry of this name. The same one may replace its own,
                as a notebook does whose cell runs again.
        """
        if entry is None:
            return lambda entry: self.add(name, entry)
        if not _is_ours(entry):
            self._load_slow()
        old = self._entries.get(name)
        if old is not None and _module(old) != _module(entry):
            raise ValueError(f"{self.kind} {name!r} exists already, in {_module(old)}; rename it")
        self._entries[name] = entry
        return entry

    def names(self) -> list[str]:
        """All names that a user may write, in order of registration."""
        self._load_slow()
        return [name for name in self._entries if name != GIVEN]

    def _load_slow(self) -> None:
        slow, self._slow = self._slow, dict
        self._entries.update(slow())

    def comes_with_us(self, name: str) -> bool:
        """Whether an entry is this package's, and not a program's own."""
        return name != GIVEN and _is_ours(self.find(name))

    def find(self, name: str) -> Entry:
        """The entry of a name, or what `python:package.module:name` stands for.

        Raises:
            UserError: there is none; one line with the nearest name.
        """
        if name.startswith("python:"):
            return cast(Entry, import_named(self.key, name))
        if name not in self._entries:
            self._load_slow()
        if name not in self._entries:
            hint = did_you_mean(name, self.names()) or ";"
            several = self.names()
            names = ", ".join(several) if len(several) <= _FEW else f"{len(several)} {self.kind}s"
            raise UserError(
                f"{self.key}: got {shorten(name)}{hint} choose one of {names}, or"
                f" python:package.module:name"
            )
        return self._entries[name]

    def problems(
        self,
        name: str,
        args: Mapping[str, Any],
        optional: Mapping[str, Any] = _NOTHING,
        hint: Hint | None = None,
    ) -> list[str]:
        """What is wrong with a name and its options, one line each; empty if nothing.

        Args:
            name: a registered one, or `python:package.module:name`.
            args: options that the user has given; each must be one of the entry's.
            optional: options that are there for every entry, such as a section's own keys with
                their defaults; those that the entry does not name are left out.
            hint: what to say of an option that it does not take; None: the nearest that it does.
        """
        try:
            return self._check(name, args, optional, hint)[1]
        except UserError as error:
            return [str(error)]

    def options(
        self, name: str, args: Mapping[str, Any], optional: Mapping[str, Any] = _NOTHING
    ) -> dict[str, Any]:
        """The checked keyword arguments of an entry, its defaults included.

        Args:
            name, args, optional: as for `problems`.

        Raises:
            ConfigError: with every problem of the options, one line each.
            UserError: there is no such entry, or it cannot be called as this kind is.
        """
        options, problems = self._check(name, args, optional)
        if problems:
            raise ConfigError(problems)
        return options

    def make(
        self,
        name: str,
        wanted: type | tuple[type, ...],
        given: Mapping[str, Any],
        options: Mapping[str, Any],
    ) -> Any:  # noqa: ANN401 (what entries of this kind give)
        """Call an entry; a user's own may do anything.

        Args:
            name: a registered one, or `python:package.module:name`.
            wanted: what it must give.
            given: what the caller of an entry passes itself.
            options: checked ones, as `options` gives them.

        Raises:
            UserError: a user's own entry fails, or gives something else.
            ValueError: the entry refuses what it is given.
        """
        entry = self.find(name)
        try:
            made = entry(**given, **options)
        except (UserError, ValueError):
            raise
        except Exception as error:
            if not name.startswith("python:"):
                raise
            raise UserError(
                f"{self.key}: {name} cannot be made with {shorten({**options})}"
                f" ({reason(error)}); fix it or change {self._section}.*"
            ) from error
        if not isinstance(made, wanted):
            kinds = wanted if isinstance(wanted, tuple) else (wanted,)
            names = " or ".join(kind.__name__ for kind in kinds)
            got = " ".join(shorten(made).split())
            raise UserError(f"{self.key}: {name} must give {names}, got {got}; return one")
        return made

    def _check(
        self,
        name: str,
        args: Mapping[str, Any],
        optional: Mapping[str, Any],
        hint: Hint | None = None,
    ) -> tuple[dict[str, Any], list[str]]:
        """The options of an entry, and what is wrong with them."""
        parameters = self.parameters(name)
        named = [key for key, each in parameters.items() if each.kind is not each.VAR_KEYWORD]
        takes_any = len(named) < len(parameters)
        taken = {key: value for key, value in optional.items() if key in named} | {**args}
        unknown = [key for key in args if key in self.given or not (takes_any or key in named)]
        problems = [self._unknown(name, key, named, hint) for key in unknown]
        known = {key: value for key, value in taken.items() if key not in unknown}
        try:
            collect = _collector(parameters)
        except _UNREADABLE as error:
            raise self._unreadable(name, error) from None
        try:
            return collect(**known), problems
        except ValidationError as error:
            return {}, [*problems, *self._explain(name, known, error)]

    def parameters(self, name: str) -> dict[str, inspect.Parameter]:
        """The parameters of an entry that are options."""
        try:
            every = inspect.signature(self.find(name), eval_str=True).parameters
        except _UNREADABLE as error:
            raise self._unreadable(name, error) from None
        named = {key: each for key, each in every.items() if each.kind not in _UNNAMED}
        lacks = [key for key in self.given if key not in named]
        if lacks and not any(each.kind is each.VAR_KEYWORD for each in named.values()):
            raise UserError(
                f"{self.key}: {name} is called with {', '.join(self.given)} by name, and does not"
                f" take {', '.join(lacks)}; add what it lacks to its parameters"
            )
        return {key: each for key, each in named.items() if key not in self.given}

    def _unreadable(self, name: str, error: Exception) -> UserError:
        why = first_line(error)
        return UserError(
            f"{self.key}: the parameters of {name} cannot be read ({why}); use annotations that"
            f" stand for types when the program runs"
        )

    def _unknown(self, name: str, option: str, named: Sequence[str], hint: Hint | None) -> str:
        key = shorten(f"{self._section}.{option}")
        near = did_you_mean(option, named).replace("'", f"'{self._section}.", 1)
        what_to_do = (
            hint(option, named) if hint else near or f"; it takes {', '.join(named) or 'none'}"
        )
        return f"unknown key {key} for {self.key}={name}{what_to_do}"

    def _explain(self, name: str, args: Mapping[str, Any], error: ValidationError) -> Iterator[str]:
        """One line per option that is missing or has a wrong value."""
        for (location,), items in by_key(error, lambda _: 1).items():
            option = str(location)
            key = f"{self._section}.{option}"
            if option in args:
                yield should_be(key, items, args[option])
            else:
                yield f"missing key {key!r}: {self.key}={name} needs it; add {key}=VALUE"


Added = list[tuple[str, str, Any]]
"""Entries: key, name, entry."""


def added() -> Added:
    """The entries that do not come with this package: those of a program's own."""
    return [
        (registry.key, name, entry)
        for registry in _REGISTRIES
        for name, entry in registry._entries.items()
        if not _is_ours(entry)
    ]


def _is_ours(entry: Any) -> bool:  # noqa: ANN401 (any callable)
    return _module(entry).partition(".")[0] == __name__.partition(".")[0]


def _module(entry: Any) -> str:  # noqa: ANN401 (any callable)
    """Where an entry is from; a `partial` is from where its function is."""
    return str(getattr(getattr(entry, "func", entry), "__module__", None))


def add_again(entries: Added) -> None:
    """Register what `added` has given, in another process of the same program."""
    registries = {registry.key: registry for registry in _REGISTRIES}
    for key, name, entry in entries:
        registries[key].add(name, entry)


def _collector(parameters: Mapping[str, inspect.Parameter]) -> Callable[..., dict[str, Any]]:
    """A function of these parameters, by name only, that checks and gives back what it gets."""

    def collect(**args: Any) -> dict[str, Any]:  # noqa: ANN401 (any option)
        return args

    by_name = [
        each if each.kind is each.VAR_KEYWORD else each.replace(kind=each.KEYWORD_ONLY)
        for each in parameters.values()
    ]
    hints = {
        each.name: Any if each.annotation is each.empty else each.annotation for each in by_name
    }
    collect.__annotations__ = {name: Annotated[hint, Strict()] for name, hint in hints.items()}
    collect.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        sorted(by_name, key=lambda each: (each.kind, each.default is not each.empty))
    )
    return validate_call(config=_CONFIG)(collect)
