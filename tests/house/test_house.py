"""The house looks after itself: layout, sizes, names, and that everything has its page and its test."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from eorouter.app import registry
from eorouter.operations.processing import AnalyticsExecuteInput, ProcessingCreateInput
from eorouter.settings import PREFIX, Settings
from eorouter.surface import docs
from eorouter_compute.method import methods

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "tests/eorouter": "src/eorouter",
    "tests/compute": "compute/eorouter_compute",
    "tests/kernels": "kernels/eorouter_kernels",
}
SOURCES = sorted(path for root in ("src", "compute", "kernels") for path in (ROOT / root).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "misc", "schemas", "services"}
LINES_MAX, FUNCTION_LINES_MAX = 600, 70

LONGER_MODULES: set[str] = set()
LONGER_FUNCTIONS: set[str] = set()
"""What is over a ceiling; the lists are short and embarrassing, and what is mended must leave them."""

TESTS_ACROSS_MODULES = {
    "tests/eorouter/jobs/test_crash.py",  # every step at which money moves × every statement of it
    "tests/eorouter/jobs/test_matrix.py",  # every part that can die × every moment at which it can
    "tests/eorouter/surface/test_authority.py",  # every operation × every caller who must be refused
    "tests/eorouter/surface/test_hostile.py",  # every operation × whatever can be sent
    "tests/eorouter/test_backup.py",  # what the runbook says of backups × a real PostgreSQL
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_sources_are_found():
    assert len(SOURCES) > 30
    assert len(TESTS) > 20


def test_module_fits_a_reading():
    long = {name(path) for path in SOURCES if len(path.read_text().splitlines()) > LINES_MAX}
    assert long == LONGER_MODULES


def test_function_fits_a_screen():
    long = {
        f"{name(path)} {function.name}"
        for path in SOURCES
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > FUNCTION_LINES_MAX
    }
    assert long == LONGER_FUNCTIONS


def test_module_says_what_it_decides():
    assert [name(path) for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))] == []


def test_nothing_is_named_after_a_kind():
    parts = {(name(path), part) for path in SOURCES for part in path.relative_to(ROOT).with_suffix("").parts}
    assert [(path, part) for path, part in parts if part in BANNED_NAMES] == []


def test_nothing_is_left_to_do():
    mark = re.compile(r"#.*\b(TODO|FIXME|XXX|HACK)\b|\b(TODO|FIXME)\b:")
    found = [
        f"{name(path)}:{number}"
        for path in [*SOURCES, *TESTS]
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark.search(line)
    ]
    assert found == []


def test_tests_mirror_the_code():
    astray = []
    for tests, package in PACKAGES.items():
        for path in (ROOT / tests).rglob("test_*.py"):
            folder = ROOT / package / path.parent.relative_to(ROOT / tests)
            subject = path.stem.removeprefix("test_")
            places = (folder / f"{subject}.py", folder / f"__{subject}__.py", folder / subject / "__init__.py")
            if not any(place.is_file() for place in places) and name(path) not in TESTS_ACROSS_MODULES:
                astray.append(name(path))
    assert astray == []


def test_tests_are_no_package():
    assert [name(path) for path in TESTS if path.name == "__init__.py"] == []


@pytest.mark.parametrize(
    "statement", ["import eorouter", "from eorouter import EoRouterClient", "import eorouter.__main__"]
)
def test_import_stays_light(statement):
    heavy = ("numba", "dask", "distributed", "rasterio", "litestar", "sqlalchemy", "numpy", "obstore", "cyclopts")
    script = f"{statement}; import sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_no_kernel_returns_or_makes_an_array():
    """It counts no references, so what it returned would be given back twice, and what it made, never."""
    by_decorator: dict[str, list[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]] = {}
    for path in SOURCES:
        for node in functions(path):
            for by in (by.id for by in node.decorator_list if isinstance(by, ast.Name)):
                by_decorator.setdefault(by, []).append((name(path), node))
    plain = by_decorator["kernel"]
    assert len(plain) > 50
    allocating = {node.name for _, node in by_decorator["allocating_kernel"]}
    for place, node in plain:
        calls = (part.func for part in ast.walk(node) if isinstance(part, ast.Call))
        called = {func.id for func in calls if isinstance(func, ast.Name)}
        assert not called & allocating, f"{place}: {node.name} calls {called & allocating}"
    scalars = {"None", "int", "float", "bool", "tuple", "np", "int64", "uint64", "float64", "Count", "Key"}
    for place, node in plain:
        assert node.returns is not None, f"{place}: {node.name} does not say what it returns"
        words = set(re.findall(r"\w+", ast.unparse(node.returns)))
        assert words <= scalars, f"{place}: {node.name} returns {ast.unparse(node.returns)}"


def test_every_error_code_is_documented_and_unique():
    rows = docs.error_rows()
    page = (ROOT / "docs/reference/errors.md").read_text()
    assert len({row.code for row in rows}) == len(rows)
    assert [row.code for row in rows if f'id="{row.code}"' not in page] == []
    assert [row.code for row in rows if not re.fullmatch(r"[a-z][a-z0-9_]*", row.code) or not row.description] == []


def test_every_setting_is_documented():
    page = (ROOT / "docs/reference/settings.md").read_text()
    variables = [PREFIX + field.name.upper() for field in msgspec.structs.fields(Settings)]
    assert [variable for variable in variables if f"`{variable}`" not in page] == []


def test_every_setting_is_used():
    text = "\n".join(path.read_text() for path in SOURCES if path.name != "settings.py")
    fields = [field.name for field in msgspec.structs.fields(Settings)]
    assert [field for field in fields if not re.search(rf"settings\.{field}\b|config\.{field}\b", text)] == []


def test_every_operation_has_a_test_that_calls_its_handler():
    """Beside those over HTTP, which send anything to everything: a test that knows what this handler is for."""
    called = {
        f"{node.func.value.id}.{node.func.attr}"
        for path in (ROOT / "tests/eorouter/operations").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name)
    }
    handlers = {op.id: f"{op.handler.__module__.rpartition('.')[2]}.{op.handler.__name__}" for op in registry()}
    assert {op: handler for op, handler in handlers.items() if handler not in called} == {}


def test_every_method_has_its_page():
    missing = [
        method for method, record in methods().items()
        if not record.is_internal and not (ROOT / "docs/methods" / f"{method}.md").is_file()
    ]  # fmt: skip
    assert missing == []


def test_every_curl_of_a_method_page_is_a_request():
    """What a page says to send decodes as the route's input; `'$ITEM'` and its like stand for ids."""
    routes = {
        "jobs": ProcessingCreateInput,
        "analytics": AnalyticsExecuteInput,
        "op/analytics.execute": AnalyticsExecuteInput,
    }
    calls = re.compile(r"/v1/(jobs|analytics|op/analytics\.execute)\"? .*?-d '\s*(\{.*?\})'\n```", re.DOTALL)
    found = []
    for path in sorted((ROOT / "docs/methods").glob("*.md")):
        for route, body in calls.findall(path.read_text()):
            plain = re.sub(r"'\$[A-Z]+'", "itm_1", body)
            found.append((path.stem, msgspec.json.decode(plain, type=routes[route]).task))
    assert [name for name, task in found if task.__struct_config__.tag != name] == []
    assert {name for name, _ in found} == {method for method, record in methods().items() if not record.is_internal}


def test_every_method_page_has_a_picture_and_a_script_that_draws_it():
    """And a number worked out, which a reader can follow."""
    for method, record in methods().items():
        if record.is_internal:
            continue
        page = (ROOT / "docs/methods" / f"{method}.md").read_text()
        assert f"](pictures/{method}.png)" in page
        assert all((ROOT / "docs/methods/pictures" / f"{method}.{end}").is_file() for end in ("png", "py"))
        assert re.search(r"(?i)worked\s+(number|example)|in the drawing", page), method


def test_no_address_of_a_machine_is_checked_in():
    suspicious = re.compile(r"(?<![\w/])/(?:home|Users|root)/\w+")
    found = [
        name(path)
        for folder in ("src", "compute", "kernels", "docs", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".md", ".toml", ".css"} and suspicious.search(path.read_text())
    ]
    assert found == []
