"""Strict configuration: what is refused, and what the message says."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from workbench.config import Choice, Config, differences, dump, load, override, slot
from workbench.errors import ConfigError


class Animal(Choice):
    """A slot made for these tests."""


class Cat(Animal):
    kind: Literal["cat"] = "cat"
    lives: int = 9
    speed: float = 1.0


class Dog(Animal):
    kind: Literal["dog"] = "dog"
    tricks: tuple[str, ...] = ()


class House(Config):
    pet: slot(Animal)  # type: ignore[valid-type]
    rooms: int = 3
    others: tuple[Cat, ...] = ()
    needed: Annotated[tuple[Cat, ...], Field(min_length=1)] = (Cat(),)


def test_a_slot_takes_any_registered_kind():
    house = load(House, {"pet": {"kind": "dog", "tricks": ["sit", "roll"]}})
    assert house.pet == Dog(tricks=("sit", "roll"))
    assert load(House, dump(house)) == house


def test_a_class_defined_later_registers_itself():
    class Parrot(Animal):
        kind: Literal["parrot"] = "parrot"
        words: int = 20

    try:
        assert load(House, {"pet": {"kind": "parrot", "words": 3}}).pet == Parrot(words=3)
    finally:
        del Animal.registry["parrot"]


def test_a_choice_without_kind_is_refused_when_it_is_defined():
    with pytest.raises(TypeError, match="kind"):

        class Nameless(Animal):
            pass


@pytest.mark.parametrize(
    ("data", "path", "says"),
    [
        ({"pet": {"kind": "cat", "livs": 3}}, "house.pet", "Did you mean 'lives'?"),
        ({"pet": {"kind": "cta"}}, "house.pet", "Did you mean 'cat'?"),
        ({"pet": {"lives": 3}}, "house.pet", "`kind` is missing. Choose from: cat, dog"),
        ({"pet": {"kind": "cat", "lives": 3.5}}, "house.pet.lives", "got 3.5"),
        ({"pet": {"kind": "cat", "lives": True}}, "house.pet.lives", "got True"),
        ({"pet": {"kind": "cat", "lives": "3"}}, "house.pet.lives", "write 3"),
        ({"pet": {"kind": "cat", "speed": "1e-4"}}, "house.pet.speed", "write 1.0e-04"),
        ({"pet": {"kind": "cat"}, "others": [{}, {"speed": "x"}]}, "house.others[1].speed", "'x'"),
        ({}, "house.pet", "required"),
        ({"pet": 3}, "house.pet", "got 3, expected named fields"),
        ({"pet": {"kind": "dog", "tricks": "sit"}}, "house.pet.tricks", "expected a list"),
    ],
    ids=str,
)
def test_errors_name_the_path_and_the_cure(data, path, says):
    with pytest.raises(ConfigError) as error:
        load(House, data, "house")
    assert str(error.value).startswith(f"{path}: ") and says in str(error.value)


def test_every_fault_is_listed():
    with pytest.raises(ConfigError) as error:
        load(House, {"pet": {"kind": "cat", "lives": "many"}, "rooms": "two"})
    assert len(str(error.value).splitlines()) == 2


def test_a_list_is_not_called_too_short_for_a_fault_inside_it():
    with pytest.raises(ConfigError) as error:
        load(House, {"pet": {"kind": "cat"}, "needed": [{"livs": 3}]})
    assert str(error.value).startswith("needed[0]: ") and "short" not in str(error.value)
    with pytest.raises(ConfigError, match=r"needed: .*at least 1"):
        load(House, {"pet": {"kind": "cat"}, "needed": []})


def test_configs_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        Cat().lives = 8


def test_override_replaces_at_dotted_paths_and_copies():
    data = {"a": {"b": 1}, "list": [{"c": 1}, {"c": 2}]}
    assert override(data, {"a.b": 5, "list.1.c": 7, "a.new": 0}) == {
        "a": {"b": 5, "new": 0},
        "list": [{"c": 1}, {"c": 7}],
    }
    assert data == {"a": {"b": 1}, "list": [{"c": 1}, {"c": 2}]}


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("ab.b", "Did you mean 'a'|there is no 'ab'"),
        ("list.2.c", "index from 0 to 1"),
        ("a.b.c", "holds 1"),
        ("list.x", "index from 0 to 1"),
    ],
)
def test_override_refuses_paths_through_nothing(path, says):
    with pytest.raises(ConfigError, match=says):
        override({"a": {"b": 1}, "list": [{"c": 1}, {"c": 2}]}, {path: 0})


def test_differences_are_named_by_path():
    ours = {"a": {"b": 1, "c": [1, {"d": 2}]}, "e": 3}
    theirs = {"a": {"b": 1, "c": [1, {"d": 5}]}, "f": 3}
    assert differences(ours, theirs) == [
        "a.c.1.d: 2 here, 5 there",
        "e: 3 here, None there",
        "f: None here, 3 there",
    ]
    assert differences(ours, ours) == []
