"""Definitions are refused when they are imported, all faults at once; those taken are what was written."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from eorouter.operation import BadOperation, Registry, Tier

_SPEC = importlib.util.spec_from_file_location(
    "bad_operations", Path(__file__).resolve().parents[1] / "house" / "bad_operations.py"
)
assert _SPEC is not None
assert _SPEC.loader is not None
bad = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(bad)


@pytest.mark.parametrize(
    ("define", "words"), [case[1:] for case in bad.BAD_OPERATIONS], ids=[c[0] for c in bad.BAD_OPERATIONS]
)
def test_bad_definition_is_refused_and_says_why(define, words):
    with pytest.raises(BadOperation) as raised:
        define()
    assert len(raised.value.faults) == 1, raised.value.faults
    assert words in str(raised.value)
    assert "things" in str(raised.value).lower()


def test_all_faults_are_told_at_once():
    with pytest.raises(BadOperation) as raised:
        bad.definition("Things", asks=bad.ThingsGet, answers=bad.Optional, doc="no", scope="x", examples=())
    assert len(raised.value.faults) == 6
    assert all(fault.startswith("Things: ") for fault in raised.value.faults)


def test_good_definition_is_read_from_the_handler():
    op = bad.definition("things.get", doc="Look at a thing.\n\nFor a while.\nOr two.", routes=(bad.GET,))
    assert (op.id, op.domain, op.tier, op.scope) == ("things.get", "things", Tier.READ, "things:read")
    assert (op.summary, op.description) == ("Look at a thing.", "For a while.\nOr two.")
    assert (op.input, op.output, op.status, op.takes_spend) == (bad.ThingsGetInput, bad.Thing, 200, False)
    assert bad.definition(answers=None).status == 204
    assert bad.definition(spends=True, **bad.SPEND).takes_spend


async def test_decorator_adds_nothing_to_the_call():
    assert await bad.definition().handler(None, bad.ThingsGetInput()) is None


def test_registry_is_sorted_and_knows_its_scopes():
    every = Registry([bad.definition("things.list"), bad.definition("things.get", asks=bad.ThingsGetInput)])
    assert [op.id for op in every] == ["things.get", "things.list"]
    assert every.scopes == ("things:read",)
    assert every.get("things.none") is None
    assert len(every) == 2


def test_module_owns_the_domains_it_names_and_no_other():
    module = ModuleType("eorouter.operations.things")
    handler = bad.definition().handler
    handler.__module__ = module.__name__
    module.get = handler
    with pytest.raises(BadOperation, match="owns no domain"):
        Registry.of([module])
    module.DOMAINS = ("things",)
    assert [op.id for op in Registry.of([module])] == ["things.get"]
    handler.__module__ = "elsewhere"  # imported from another module: not its own
    assert len(Registry.of([module])) == 0
