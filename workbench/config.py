"""Strict configuration: frozen pydantic models, open slots chosen by `kind`, errors that teach.

A `Config` belongs to the class that it configures. A *slot* (mixer, feature map, optimizer, ...)
is a family: a subclass of `Choice` whose members differ in `kind`. Members register themselves
when their class is created, so one defined in a notebook is chosen by name exactly like ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
)
from pydantic import model_validator as model_validator
from pydantic.fields import FieldInfo

from workbench.errors import ConfigError

T = TypeVar("T", bound="Config")
Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, lt=1)]
CarryMode = Literal["keep", "reset"]
"""what becomes of the state at the end of a segment: handed on, or begun afresh"""
SameLength = Literal["off", "including_self", "beyond_self"]
"""whether every query sees equally many keys, its own among them or not"""


def nearest(word: str, choices: list[str]) -> str:
    """The sentence that names the closest choice, or all choices when none is close."""
    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f"Did you mean '{close[0]}'?" if close else f"Choose from: {', '.join(sorted(choices))}."


class Config(BaseModel):
    """A frozen, strictly checked set of named values."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        """Refuse unknown names with the nearest known one; YAML lists become tuples."""
        if not isinstance(data, Mapping):
            return data
        for key in data:
            if key not in cls.model_fields:
                known = list(cls.model_fields)
                raise ValueError(f"there is no field '{key}' here. {nearest(str(key), known)}")
        return {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}


class Choice(Config):
    """One alternative of a slot. The direct subclasses of `Choice` are the slots themselves."""

    family: ClassVar[str] = ""
    registry: ClassVar[dict[str, type[Choice]]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if Choice in cls.__bases__:
            cls.registry = {}
            cls.family = cls.__name__
            return
        field: FieldInfo | None = cls.model_fields.get("kind")
        if field is None or not get_args(field.annotation):
            raise TypeError(f'{cls.__name__} must declare `kind: Literal["..."] = "..."`')
        # the same notebook cell run twice defines the class again: the newest one wins
        cls.registry[field.default] = cls


def slot(family: type[Choice]) -> Any:
    """The annotation of a field that holds any registered member of `family`.

    Use: `mixer: slot(MixerConfig)`. From YAML: `mixer: {kind: attention, n_heads: 8}`.
    """

    def resolve(data: Any) -> Any:
        if isinstance(data, family) or not isinstance(data, Mapping):
            return data
        kinds = list(family.registry)
        if "kind" not in data:
            raise ValueError(f"`kind` is missing. Choose from: {', '.join(sorted(kinds))}.")
        kind = data["kind"]
        if kind not in family.registry:
            raise ValueError(f"there is no kind '{kind}'. {nearest(str(kind), kinds)}")
        return family.registry[kind].model_validate(data)

    return Annotated[SerializeAsAny[family], BeforeValidator(resolve)]  # type: ignore[valid-type, misc]


_EXPECTED = {"model_type": "named fields", "tuple_type": "a list"}


def _cure(error: Mapping[str, Any]) -> str:
    """One line for one pydantic error: what was got and what to write instead."""
    got = error["input"]
    text = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return text
    if error["type"] == "missing":
        return "this field is required"
    if error["type"] in _EXPECTED:
        return f"got {got!r:.80}, expected {_EXPECTED[error['type']]}"
    if isinstance(got, str) and error["type"] in ("float_type", "int_type"):
        try:
            number = float(got)
        except ValueError:
            pass
        else:
            plain = f"{number:.1e}" if error["type"] == "float_type" else f"{number:g}"
            return f"got the text '{got}'; YAML 1.1 reads it as text, write {plain}"
    return f"{text[0].lower()}{text[1:]}; got {got!r}"


def explain(error: ValidationError, where: str) -> str:
    """All faults of a validation, a line each, with their dotted paths below `where`."""
    lines, faults = [], error.errors()
    for fault in faults:
        n = len(fault["loc"])
        # a list that lacks nothing but its faulty items is called too short as well
        inside = (f for f in faults if len(f["loc"]) > n and f["loc"][:n] == fault["loc"])
        if fault["type"] == "too_short" and any(inside):
            continue
        path = where
        for part in fault["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        lines.append(f"{path or 'recipe'}: {_cure(fault)}")
    return "\n".join(lines)


def load(cls: type[T], data: Any, where: str = "") -> T:
    """Validate plain data as a `cls`.

    Args:
        cls: the configuration class.
        data: nested dicts, lists and scalars, as YAML gives them.
        where: what the paths in messages start with.

    Raises:
        ConfigError: naming every wrong field, with its path and a cure.
    """
    if not isinstance(data, Mapping | cls):
        raise ConfigError(f"{where or cls.__name__}: expected named fields, got {data!r}")
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        raise ConfigError(explain(error, where)) from None


def dump(config: Config) -> dict[str, Any]:
    """Plain data (dicts, lists, scalars) from which `load` makes an equal config."""
    return config.model_dump(mode="json")


def essence(value: Any) -> Any:
    """As `dump`, without the fields that have their default values.

    A field that is added later with a default leaves it as it was.
    """
    if isinstance(value, Config):
        fields = type(value).model_fields
        given = {name: getattr(value, name) for name in fields}
        return {
            name: essence(x)
            for name, x in given.items()
            if name == "kind" or x != fields[name].get_default(call_default_factory=True)
        }
    if isinstance(value, tuple | list):
        return [essence(x) for x in value]
    return {k: essence(x) for k, x in value.items()} if isinstance(value, dict) else value


def override(data: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A deep copy of nested plain data with values at dotted paths replaced.

    Args:
        data: the recipe as plain data.
        changes: such as `{"train.steps": 200, "model.stack.0.repeat": 2}`; a number in a path is
            an index into a list. The last name may be new (an optional field), the others not.

    Raises:
        ConfigError: a path leads through something that is not there.
    """
    result = _copy(data)
    for path, value in changes.items():
        here: Any = result
        *parents, last = str(path).split(".")
        for depth, name in enumerate(parents):
            here = _step(here, name, ".".join(parents[: depth + 1]))
        if isinstance(here, list):
            _step(here, last, path)
            here[int(last)] = _copy(value)
        elif isinstance(here, dict):
            here[last] = _copy(value)
        else:
            raise ConfigError(f"override '{path}': '{'.'.join(parents)}' holds {here!r}, no fields")
    return result


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _copy(v) for k, v in value.items()}
    return [_copy(v) for v in value] if isinstance(value, list | tuple) else value


def _step(here: Any, name: str, path: str) -> Any:
    if isinstance(here, list):
        if name.isdigit() and int(name) < len(here):
            return here[int(name)]
        raise ConfigError(f"override '{path}': expected an index from 0 to {len(here) - 1}")
    if isinstance(here, dict):
        if name in here:
            return here[name]
        raise ConfigError(f"override '{path}': there is no '{name}'. {nearest(name, list(here))}")
    raise ConfigError(f"override '{path}': nothing to enter, found {here!r}")


def differences(ours: Any, theirs: Any, path: str = "") -> list[str]:
    """Dotted paths at which two nested plain values differ, each with both values."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        lines = []
        for key in sorted(ours.keys() | theirs.keys()):
            below = f"{path}.{key}" if path else str(key)
            lines += differences(ours.get(key), theirs.get(key), below)
        return lines
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        return [
            line
            for i, pair in enumerate(zip(ours, theirs, strict=True))
            for line in differences(*pair, f"{path}.{i}")
        ]
    return [] if ours == theirs else [f"{path}: {ours!r} here, {theirs!r} there"]
