"""The reference as Markdown."""

import re
import shlex

import pytest

from eorouter.app import registry
from eorouter.surface import docs, openapi


def test_every_operation_has_a_section_with_its_routes_fields_and_a_command(toys):
    pages = docs.reference_pages(toys)
    for op in toys:
        section = pages[f"{op.domain}.md"].split(f"## {op.id}\n")[1].split("\n## ")[0]
        assert op.summary in section
        assert all(f"`{route.method} {route.path}`" in section for route in op.routes)
        assert all(f"| `{name}` |" in section for name in op.input.__struct_fields__)
        assert "curl" in section


def test_pages_link_only_to_what_there_is(toys):
    for every in (toys, registry()):
        pages = docs.reference_pages(every)
        for name, text in pages.items():
            for target, fragment in re.findall(r"\]\(([a-z_A-Z]+\.md)(?:#([\w-]+))?\)", text):
                assert target in pages, (name, target)
                if fragment:
                    heads = {
                        h.lower().replace(".", "").replace(" ", "-")
                        for h in re.findall(r"^#+ (.+)$", pages[target], re.MULTILINE)
                    }
                    assert fragment in heads | set(re.findall(r'id="([^"]+)"', pages[target])), (name, target, fragment)


def test_tables_keep_their_columns(toys):
    for text in docs.reference_pages(toys).values():
        widths = []
        for line in text.splitlines():
            widths = [*widths, len(re.split(r"(?<!\\)\|", line))] if line.startswith("|") else []
            assert len(set(widths)) <= 1, line


def test_fields_say_unit_and_bounds(toys):
    rows = {row.name: row for row in docs.field_rows(openapi.components(toys)["ToysCreateInput"])}
    assert rows["name"].is_required
    assert (rows["name"].kind, rows["name"].bounds) == ("string", "at least 1 characters, at most 40 characters")
    assert (rows["weights_g"].kind, rows["weights_g"].bounds) == ("list of integer", "each ≥ 1, each ≤ 10000")
    assert rows["shape"].kind == "Square or Disc or null"
    assert rows["labels"].kind == "object of integer"
    assert next(iter(rows)) == "name"


@pytest.mark.parametrize(
    ("operation_id", "parts"),
    [
        ("toys.list", ["curl", "$EOROUTER_URL/v1/toys?kind=soft", "-H", "Authorization: Bearer $EOROUTER_API_KEY"]),
        ("toys.public.get", ["curl", "$EOROUTER_URL/v1/public"]),
        ("toys.delete", ["curl", "-X", "DELETE", "$EOROUTER_URL/v1/toys/toy_1", "-H",
                         "Authorization: Bearer $EOROUTER_API_KEY"]),
        ("toys.update", ["curl", "-X", "PATCH", "$EOROUTER_URL/v1/toys/toy_1", "-H",
                         "Authorization: Bearer $EOROUTER_API_KEY", "-H", "Content-Type: application/json", "-d",
                         '{"name": "bear"}']),
    ],
)  # fmt: skip
def test_example_is_a_command_that_a_shell_reads(toys, operation_id, parts):
    (_, command), *_ = docs.examples_of(toys.get(operation_id))
    assert [part for part in shlex.split(command) if part.strip()] == parts


def test_codes_of_errors_are_unique():
    codes = [row.code for row in docs.error_rows()]
    assert len(codes) == len(set(codes))
    assert {"not_found", "band_not_found", "no_crs"} <= set(codes)
    assert all(row.description for row in docs.error_rows())
