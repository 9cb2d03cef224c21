"""The language of formulas: what it means, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eorouter_compute import expression
from eorouter_compute.errors import InvalidExpression
from eorouter_compute.expression import Operand, compile_expression, compile_expressions, evaluate
from eorouter_kernels import expression as machine


def value(text: str, **bands: float) -> float:
    program = compile_expression(text, bands.keys() | {"a"})
    operands = {name: Operand(np.array([[number]])) for name, number in ({"a": 0.0} | bands).items()}
    return float(evaluate(program, operands, dtype="float64")[0, 0, 0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2 + 3 * 4", 14),
        ("(2 + 3) * 4", 20),
        ("2 ** 3 ** 2", 512),  # to the right
        ("-2 ** 2", -4),  # a power binds tighter than a sign, as in Python
        ("2 ** -1", 0.5),
        ("a - b - 1", 5),
        ("a / b / 2", 2),
        ("8 - 2 % 5", 6),
        ("-7 % 3 + 0 * a", 2),  # the sign of the divisor
        ("(0 - a) % 3", 1),
        ("a > 1 and b < 3", 1),
        ("a > 1 or b > 3", 1),
        ("not a > 1", 0),
        ("not not a", 1),
        ("1 < b < 3", 1),
        ("1 < b < 2", 0),
        ("(a > 1) & (b > 3)", 0),
        ("(a > 1) | (b > 3)", 1),
        ("~(a > 1)", 0),
        ("where(a > 5, a, b)", 8),
        ("where(a, 1, 2)", 1),
        ("min(a, b, 5)", 2),
        ("max(a, b, 9)", 9),
        ("clip(a, 0, 1)", 1),
        ("clip(-a, 0, 1)", 0),
        ("atan2(b, b)", math.pi / 4),
        ("floor(a / 3)", 2),
        ("ceil(a / 3)", 3),
        ("abs(b - a)", 6),
        ("sqrt(b * a)", 4),
        ("log(exp(b))", 2),
        ("log10(100 + 0 * a)", 2),
        ("sin(pi / 2) + cos(0) + tan(0 * a) + atan(0)", 2),
        ("e ** b", math.e**2),
        ("a ** 0.5", 8**0.5),
        ("a ** 2", 64),
        ("a ** 3", 512),
        ("a ** 1", 8),
        ("1e2 + .5 + 3.", 103.5),
        ("  a\n+ b ", 10),
    ],
)
def test_formula_means_what_it_says(text, expected):
    assert value(text, a=8.0, b=2.0) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "a / b", "a % b", "1 / b", "b ** -1", "log(b)", "log(-a)", "log10(b)", "sqrt(-a)", "(-a) ** 0.5",
        "(-a) ** (1/3)", "exp(a * 1000)", "a / b > 1", "not (a / b)", "(a / b > 1) or (a > 1)",
        "where(a / b > 1, 1, 2)", "min(a, a / b)", "max(a / b, a)", "(a / b) ** 0", "1 / (1 / b)", "clip(a / b, 0, 1)",
    ],
)  # fmt: skip
def test_formula_without_a_finite_value_is_missing(text):
    assert math.isnan(value(text, a=8.0, b=0.0))


def test_where_hides_a_failed_branch_but_never_an_invalid_band():
    program = compile_expression("where(a + b == 0, 0, (a - b) / (a + b))", ["a", "b"])
    a, b = np.array([[1, 0, 1, 0]], np.uint8), np.array([[1, 0, 3, 0]], np.uint8)
    valid = np.array([[True, True, True, False]])
    got = evaluate(program, {"a": Operand(a), "b": Operand(b, valid=valid)})
    np.testing.assert_array_equal(got, np.array([[[0, 0, -0.5, np.nan]]], np.float32))
    unused = compile_expression("where(a > 0, 1, b)", ["a", "b"])
    got = evaluate(unused, {"a": Operand(a + 1), "b": Operand(b, valid=valid)})
    np.testing.assert_array_equal(got, np.array([[[1, 1, 1, np.nan]]], np.float32))


HOSTILE = [
    ("", 0, "expected"),
    ("   ", 3, "expected"),
    ("a.real", 1, "no dots"),
    ("a.__class__", 1, "no dots"),
    ("().__class__.__bases__[0]", 2, "no dots"),
    ("()", 1, "expected"),
    ("__import__('os')", 11, "no strings"),
    ("__import__", 0, "not known"),
    ("__import__(a)", 0, "no function"),
    ("a[0]", 1, "no indexing"),
    ("[a for a in b]", 0, "no indexing"),
    ("{a}", 0, "no braces"),
    ("lambda: a", 6, "no ranges or lambdas"),
    ("(a := 2)", 3, "nothing can be assigned"),
    ("a = 2", 2, "equality is written =="),
    ("f'{a}'", 1, "no strings"),
    ('"a" * 9', 0, "no strings"),
    ("a ^ 2", 2, "a power is written **"),
    ("a // 2", 2, "floor(a / b)"),
    ("a << 2", 2, "no shifts"),
    ("a @ b", 2, "a product is written *"),
    ("!a", 0, "negation"),
    ("a if b else a", 2, "an operator was expected"),
    ("if", 0, "write where"),
    ("a b", 2, "an operator was expected"),
    ("2 a", 2, "an operator was expected"),
    ("2a", 0, "malformed number"),
    ("1_000", 0, "malformed number"),
    ("0x10", 0, "malformed number"),
    ("1e", 0, "malformed number"),
    ("1.2.3", 0, "malformed number"),
    ("1j * a", 0, "malformed number"),
    ("1e999", 0, "too large"),
    ("9 ** 9 ** 9", 2, "not a finite number"),
    ("1 / 0", 2, "not a finite number"),
    ("a * log(0)", 4, "not a finite number"),
    ("sqrt(-1)", 0, "not a finite number"),
    ("a +", 3, "expected"),
    ("+ * a", 2, "expected"),
    ("(a", 2, ") was expected"),
    ("a)", 1, "an operator was expected"),
    ("a, b", 1, "an operator was expected"),
    ("min(a)", 0, "at least 2"),
    ("min()", 4, "expected"),
    ("sqrt(a, b)", 0, "takes 1"),
    ("where(a, b)", 0, "takes 3"),
    ("sqrt", 0, "is a function"),
    ("sqrt(a)(b)", 7, "an operator was expected"),
    ("a(b)", 0, "no function 'a'"),
    ("eval(a)", 0, "no function 'eval'"),
    ("None", 0, "not known"),
    ("True", 0, "not known"),
    ("nan", 0, "not known"),
    ("c", 0, "known are a, b"),
    ("A + b", 0, "'A' is not known"),
    ("а + b", 0, "not an ASCII character"),  # a Cyrillic letter that looks like a
    ("a − b", 2, "not an ASCII character"),  # a typographic minus
    ("a\u200b + b", 1, "not an ASCII character"),
    ("a\x00", 1, "not an ASCII character"),
    ("a > 1 & b < 2", 6, "joins conditions"),
    ("~a", 0, "joins conditions"),
    ("a; b", 1, "not an operator"),
    ("a # b", 2, "not an operator"),
    ("a \\\n b", 2, "no line continuation"),
    ("(" * 2_000 + "a" + ")" * 2_000, 48, "nested deeper"),
    ("-(" * 1_000 + "a" + ")" * 1_000, 96, "nested deeper"),
    ("a**" * 500 + "a", None, "nested deeper"),
    ("a" * 5_000, 4_096, "5000 characters"),
    ("sqrt(" * 300 + "a" + ")" * 300, None, "nested deeper"),
]


@pytest.mark.parametrize(("text", "position", "why"), HOSTILE, ids=[repr(text[:24]) for text, *_ in HOSTILE])
def test_compile_hostile_text_is_refused_with_its_place(text, position, why):
    with pytest.raises(InvalidExpression) as caught:
        compile_expression(text, ["a", "b"])
    assert why in caught.value.message
    assert "where" in caught.value.message, "the message says what is allowed"
    if position is not None:
        assert caught.value.data["position"] == position


@given(st.text(alphabet="ab()+-*/%<>=&|~.,0129e_ notwhermix\"'[]{}:;\\\n\u00e9", max_size=60))
def test_compile_any_text_is_compiled_or_refused(text):
    try:
        program = compile_expression(text, ["a", "b"])
    except InvalidExpression as error:
        place = error.data["position"]
    else:
        place = 0
        assert set(program.names) <= {"a", "b"}
    assert 0 <= place <= len(text)


def test_compile_long_sums_need_few_registers_and_no_deep_stack():
    program = compile_expression(" + ".join(["a * b"] + ["a"] * 600), ["a", "b"])
    assert program.register_count <= 5
    assert value(" + ".join(["a"] * 1_000), a=1.0) == 1_000


def test_compile_shares_equal_parts_and_folds_constants():
    program = compile_expression("(a - b) / (a + b) + (b + a) * (2 * 3 - 1)", ["a", "b"])
    assert program.constants == (5.0,)
    assert len(program.code) == 2 + 5 + 1  # two loads; a-b, a+b, /, *, +; one store
    both = compile_expressions(["(a - b) / (a + b)", "1 - (a - b) / (a + b)"], ["a", "b"])
    assert len(both.code) == 2 + 3 + 1 + 1 + 1
    assert both.names == ("a", "b")


def test_compile_second_formula_at_fault_is_named():
    with pytest.raises(InvalidExpression) as caught:
        compile_expressions(["a", "a + c"], ["a"])
    assert caught.value.data == {"position": 4, "expression": 1}


def test_compile_parameters_become_constants_and_bands_hide_constants():
    program = compile_expression("(1 + L) * a", ["a"], parameters={"L": 0.5})
    assert program.constants == (1.5,)
    assert value("e * 2", e=3.0) == 6.0


def test_compile_more_bands_than_slots_is_refused():
    names = [f"b{number}" for number in range(17)]
    with pytest.raises(InvalidExpression, match="17 bands"):
        compile_expression(" + ".join(names), names)


def test_evaluate_constant_formula_fills_the_raster():
    got = evaluate(compile_expression("2 * pi", ["a"]), {"a": Operand(np.zeros((3, 4), np.uint8))})
    np.testing.assert_array_equal(got, np.full((1, 3, 4), 2 * np.pi, np.float32))


def test_evaluate_mixed_dtypes_byte_orders_and_strides_give_the_same_values():
    generator = np.random.default_rng(3)
    a = generator.integers(0, 200, (50, 60))
    b = generator.integers(1, 200, (50, 60))
    program = compile_expression("a / b", ["a", "b"])
    wanted = (a / b).astype(np.float32)
    for kind_a, kind_b in [("u1", "<u2"), ("i2", "f4"), (">u2", ">f8"), ("i8", "u8"), ("f2", "i4")]:
        got = evaluate(program, {"a": Operand(a.astype(kind_a)), "b": Operand(b.astype(kind_b))})[0]
        np.testing.assert_array_equal(got, wanted)
    turned = evaluate(program, {"a": Operand(a.astype("u1").T), "b": Operand(b.astype("u1").T)})[0]
    np.testing.assert_array_equal(turned, wanted.T)
    part = evaluate(program, {"a": Operand(a.astype("u1")[::2, 3:]), "b": Operand(b.astype("u1")[::2, 3:])})[0]
    np.testing.assert_array_equal(part, wanted[::2, 3:])


def test_evaluate_arrays_that_may_not_be_written_to_are_read_like_others():
    a = np.broadcast_to(np.array([[1, 2, 3]], np.uint16), (2, 3))
    b = np.frombuffer(np.array([2, 2, 2, 4, 4, 4], np.uint16).tobytes(), np.uint16).reshape(2, 3)
    valid = np.broadcast_to(np.array([True, True, False]), (2, 3))
    program = compile_expression("a / b", ["a", "b"])
    got = evaluate(program, {"a": Operand(a, valid=valid), "b": Operand(b)})[0]
    np.testing.assert_array_equal(got, np.array([[0.5, 1, np.nan], [0.25, 0.5, np.nan]], np.float32))


def test_evaluate_compiles_nothing_once_warmed_up():
    machine.warm_up()
    signatures = len(machine.run_program.signatures)  # pyright: ignore[reportFunctionMemberAccess]
    assert signatures == 2
    for text in ("a", "a + b", "where(a > b, a, exp(b))", "(a - b) / (a + b)"):
        for dtype in ("uint8", "float32", "int64"):
            operands = {name: Operand(np.ones((3, 4), dtype)) for name in "ab"}
            for out in ("float32", "float64"):
                evaluate(compile_expression(text, "ab"), operands, dtype=out)
    assert len(machine.run_program.signatures) == signatures  # pyright: ignore[reportFunctionMemberAccess]


def test_evaluate_bands_of_different_shapes_are_refused():
    program = compile_expression("a + b", ["a", "b"])
    with pytest.raises(ValueError, match="one grid"):
        evaluate(program, {"a": Operand(np.zeros((2, 2))), "b": Operand(np.zeros((2, 3)))})


def test_evaluate_ndvi_equals_numpy_bit_for_bit():
    generator = np.random.default_rng(11)
    red, nir = generator.integers(0, 12_000, (2, 700, 900)).astype(np.uint16)
    red[:30] = nir[:30] = 1_000  # reflectance zero: 0 / 0
    n, r = nir * 1e-4 + -0.1, red * 1e-4 + -0.1
    with np.errstate(all="ignore"):
        wanted = ((n - r) / (n + r)).astype(np.float32)
    wanted[~np.isfinite(wanted)] = np.nan
    operands = {"N": Operand(nir, 1e-4, -0.1), "R": Operand(red, 1e-4, -0.1)}
    got = evaluate(compile_expression("(N - R)/(N + R)", ["N", "R"]), operands)[0]
    assert np.isnan(got[0, 0])
    np.testing.assert_array_equal(got.view(np.uint32)[30:], wanted.view(np.uint32)[30:])
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))


def test_program_register_file_fits_the_cache():
    program = compile_expression("a", ["a"])
    assert program.block_size == 2_048
    nested = "+".join(f"(a+{number})*(b+{number})" for number in range(100))
    large = compile_expression(nested, ["a", "b"])
    assert large.register_count > 100
    assert large.register_count * large.block_size * 8 <= 1 << 20
    assert expression.evaluate(large, {k: Operand(np.ones((2, 2))) for k in "ab"})[0, 0, 0] == sum(
        (1 + k) ** 2 for k in range(100)
    )
