"""The names of experiment files: found without importing their modules, and equal to what is registered."""

import dataclasses
import pkgutil
from importlib import import_module
from typing import Any

import pytest

import immiscible_diffusion
from immiscible_diffusion import registry
from immiscible_diffusion.couplings import Nearest
from immiscible_diffusion.registry import KINDS, lookup, make, names, register
from immiscible_diffusion.schedules import Betas


@pytest.mark.parametrize("kind", KINDS)
def test_the_names_in_the_source_are_those_that_register(kind: str) -> None:
    package = import_module(f"immiscible_diffusion.{KINDS[kind]}")
    for module in pkgutil.iter_modules(getattr(package, "__path__", [])):
        import_module(f"{package.__name__}.{module.name}")
    registered = {
        name: cls.__module__
        for name, cls in registry._registered[kind].items()
        if cls.__module__.startswith("immiscible_diffusion.") and cls.__module__ != "immiscible_diffusion.registry"
    }
    assert registered == registry._built_in(kind)
    assert len(registered) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_no_test_module_registers_for_good(kind: str) -> None:
    """Tests of all registered classes would otherwise depend on which modules are collected with them."""
    outside = [cls for cls in registry._registered[kind].values() if not cls.__module__.startswith("immiscible_diff")]
    assert outside == []


def test_a_class_may_not_take_the_name_of_a_built_in() -> None:
    @dataclasses.dataclass(frozen=True)
    class Cmmd: ...

    with pytest.raises(ValueError, match=r"a metric named 'cmmd' exists already: immiscible_diffusion\.metrics\.cmmd"):
        register("metric")(Cmmd)
    assert lookup("metric", "cmmd") is not Cmmd


def test_plain_values_take_the_types_of_their_fields() -> None:
    made = make("coupling", {"use": "nearest", "k": 8})
    assert (type(made.k), made) == (float, Nearest(8))
    assert make("net", {"use": "unet", "channels": [8.0, 16]}).channels == (8, 16)
    scales = [make("codec", {"use": "vae", "path": "x", "scale": scale}).scale for scale in (1, [1, 2.5], None)]
    assert scales == [1.0, (1.0, 2.5), None]
    assert type(scales[0]) is float
    assert [make("features", {"use": "inception", "layer": key}).layer for key in (768, "logits")] == [768, "logits"]


def test_an_option_of_some_kind_may_be_an_object() -> None:
    schedule = Betas(levels=7)
    assert make("method", {"use": "denoising", "schedule": schedule}).schedule is schedule


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (3, "here is 3; it must be a name or a table with use = NAME"),
        ({}, r"here needs use = NAME; there are \['assignment'"),
        ({"use": "nearest", "kk": 3}, r"unknown key here.kk; there are \['k', 'cost'\]"),
        ({"use": "flipped", "coupling": "hungarian"}, "here.coupling: no coupling named 'hungarian'"),
        ({"use": "flipped", "coupling": {"use": "nearest", "cost": "l3"}}, "here.coupling.cost is 'l3'"),
    ],
)
def test_a_mistake_names_its_key(choice: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("coupling", choice, where="here")


def test_every_public_name_is_there_and_listed() -> None:
    homes = [name for defined in immiscible_diffusion._HOMES.values() for name in defined]
    assert sorted(homes) == sorted(immiscible_diffusion.__all__)
    for name in immiscible_diffusion.__all__:
        assert getattr(immiscible_diffusion, name) is not None
        assert name in dir(immiscible_diffusion)
    assert immiscible_diffusion.couplings.Nearest is Nearest
    with pytest.raises(AttributeError, match="no attribute 'assing'"):
        _ = immiscible_diffusion.assing
    assert names("coupling")
