"""The expression machine against its NumPy twin, over formulas and pixels that Hypothesis draws."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eorouter_compute import expression as language
from eorouter_kernels import expression
from eorouter_kernels.reference import expression as reference

NUMBERS = st.sampled_from(["0", "1", "2", "0.5", "3", "1e-3", "0.08", "7.5", "-1"])
LEAVES = st.one_of(st.sampled_from(["a", "b", "c"]), NUMBERS)


def _compound(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    pair = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*", "/", "%", "**"]), pair).map(
            lambda t: f"({t[1][0]} {t[0]} {t[1][1]})"
        ),
        st.tuples(st.sampled_from(["<", "<=", ">", ">=", "==", "!=", "and", "or"]), pair).map(
            lambda t: f"({t[1][0]} {t[0]} {t[1][1]})"
        ),
        st.tuples(st.sampled_from(["min", "max", "atan2"]), pair).map(lambda t: f"{t[0]}({t[1][0]}, {t[1][1]})"),
        st.tuples(
            st.sampled_from(["abs", "sqrt", "log", "log10", "exp", "sin", "cos", "tan", "atan", "floor", "ceil"]), inner
        ).map(lambda t: f"{t[0]}({t[1]})"),
        inner.map(lambda text: f"-({text})"),
        inner.map(lambda text: f"(not {text})"),
        st.tuples(inner, inner, inner).map(lambda t: f"where({t[0]}, {t[1]}, {t[2]})"),
        st.tuples(inner, inner, inner).map(lambda t: f"clip({t[0]}, {t[1]}, {t[2]})"),
    )


FORMULAS = st.recursive(LEAVES, _compound, max_leaves=12)


def _bands(seed: int, size: int) -> dict[str, np.ndarray]:
    """Three bands with what breaks formulas among ordinary values: zeros, equal values, negatives, NaN."""
    generator = np.random.default_rng(seed)
    bands = generator.normal(0.3, 0.6, (3, size))
    bands[generator.random((3, size)) < 0.1] = 0.0
    bands[generator.random((3, size)) < 0.05] = np.nan
    bands[1] = np.where(generator.random(size) < 0.1, bands[0], bands[1])
    return dict(zip("abc", bands, strict=True))


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    texts=st.lists(FORMULAS, min_size=1, max_size=4), seed=st.integers(0, 1_000), size=st.sampled_from([1, 7, 1_500])
)
def test_run_program_any_formula_equals_the_twin(texts, seed, size):
    bands = _bands(seed, size)
    try:
        program = language.compile_expressions(texts, "abc")
    except language.InvalidExpression as error:
        program, refusal = None, error.message
    else:
        refusal = "constants"
    assert "constants" in refusal, "only a constant part without a value, such as 1 / 0, is refused"
    if program is None:
        return
    operands = {name: language.Operand(pixels) for name, pixels in bands.items()}
    got = language.evaluate(program, operands, dtype="float64")
    wanted = reference.run_program(program.code, program.constants, [bands[n] for n in program.names] or [bands["a"]])
    assert got.shape == (len(texts), size)
    np.testing.assert_array_equal(got, wanted)


EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.5, 1e-300, 1e300, -1e300, 3.0, np.pi, np.nan, np.inf, -np.inf]
PAIRS = np.array([(a, b) for a in EDGES for b in EDGES]).T.copy()


@pytest.mark.parametrize("op", range(expression.NEG, expression.CEIL + 1))
def test_apply_unary_edge_values_equal_the_twin(op):
    a = np.array([edge for edge in EDGES if np.isfinite(edge) or np.isnan(edge)])
    out = np.empty_like(a)
    expression.apply_unary(op, a, out)
    finite = reference.apply_unary(op, a)
    np.testing.assert_array_equal(
        np.where(np.isfinite(out), out, np.nan), np.where(np.isfinite(finite), finite, np.nan)
    )


@pytest.mark.parametrize("op", range(expression.ADD, expression.ATAN2 + 1))
def test_apply_arithmetic_edge_values_equal_the_twin(op):
    a, b = PAIRS[:, np.isfinite(PAIRS).all(axis=0) | np.isnan(PAIRS).any(axis=0)].copy()
    out = np.empty_like(a)
    expression.apply_arithmetic(op, a, b, out)
    wanted = reference.apply_arithmetic(op, a, b)
    np.testing.assert_array_equal(
        np.where(np.isfinite(out), out, np.nan), np.where(np.isfinite(wanted), wanted, np.nan)
    )
    assert np.isnan(out[np.isnan(a) | np.isnan(b)]).all()


@pytest.mark.parametrize("op", range(expression.LT, expression.OR + 1))
def test_apply_condition_edge_values_equal_the_twin(op):
    a, b = PAIRS
    out = np.empty_like(a)
    expression.apply_condition(op, a, b, out)
    np.testing.assert_array_equal(out, reference.apply_condition(op, a, b))
    assert set(np.unique(out[~np.isnan(out)])) == {0.0, 1.0}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_store_finite_edge_values_equal_the_twin(dtype):
    a = np.array([*EDGES, 3.4028235e38, 3.4028236e38, 1 + 2**-24, 1 + 2**-23, 1e-46])
    out = np.empty(a.shape, dtype)
    expression.store_finite(a, out)
    np.testing.assert_array_equal(out, reference.store_finite(a, dtype))


@pytest.mark.parametrize("dtype", expression.DTYPES)
def test_load_band_every_dtype_gives_physical_values(dtype):
    stored = np.array([[0, 1, 2, 100], [3, 4, 5, 127]], dtype)
    program = language.compile_expression("a", ["a"])
    valid = np.array([[True, False, True, True], [True] * 4])
    got = language.evaluate(program, {"a": language.Operand(stored, 1e-4, -0.1, valid)}, dtype="float64")[0]
    np.testing.assert_array_equal(got, reference.load_band(stored, 1e-4, -0.1, valid))
    assert got[1, 3] == float(stored[1, 3]) * 1e-4 + -0.1


def test_run_program_any_block_size_gives_the_same_bits():
    bands = _bands(5, 5_000)
    program = language.compile_expression("where(a > b, sqrt(a) / c, exp(a) - b ** 1.3)", "abc")
    empty, everything = np.empty(0, np.uint8), np.empty(0, np.bool_)
    slots = (*(bands[name].view(np.uint8) for name in program.names), *[empty] * (expression.SLOTS - 3))
    results = []
    for block_size in (64, 1_000, 1_024, 8_192):
        out = np.empty((1, 5_000), np.float32)
        expression.run_program(
            np.array(program.code), np.array(program.constants), program.register_count, block_size, slots,
            np.full(expression.SLOTS, 7), np.ones(expression.SLOTS), np.zeros(expression.SLOTS),
            (everything,) * expression.SLOTS, out,
        )  # fmt: skip
        results.append(out.tobytes())
    assert len(set(results)) == 1
    assert np.isfinite(np.frombuffer(results[0], np.float32)).any()


def test_store_finite_overflow_of_the_output_dtype_is_missing():
    program = language.compile_expression("a * 1e300", ["a"])
    stored = np.array([0.0, 1e-299, 1.0, 1e200])
    operands = {"a": language.Operand(stored)}
    np.testing.assert_array_equal(
        language.evaluate(program, operands)[0], np.array([0, 10, np.nan, np.nan], np.float32)
    )
    np.testing.assert_array_equal(language.evaluate(program, operands, dtype="float64")[0][2:], [1e300, np.nan])


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
@pytest.mark.parametrize("is_clamped", [True, False])
def test_pack_values_equal_the_twin(dtype, is_clamped):
    info = np.iinfo(dtype)
    edges = [info.min - 1.0, info.min, info.min + 0.5, info.max - 0.5, info.max, info.max + 1.0, 0.5, 1.5, 2.5, -0.5]
    values = np.array([*edges, np.nan, 1e300, -1e300, 7.0, 8.0])
    for scale, offset in ((1.0, 0.0), (0.01, -3.0), (-2.0, 5.0)):
        for avoided in (np.nan, float(info.min), float(info.max), 7.0):
            out, valid = np.empty(values.shape, dtype), np.empty(values.shape, np.bool_)
            low, high, fill = float(info.min), float(info.max), 0.0 if np.isnan(avoided) else avoided
            expression.pack_values(values, scale, offset, low, high, is_clamped, avoided, fill, out, valid)
            wanted, known = reference.pack_values(
                values,
                scale,
                offset,
                low=low,
                high=high,
                is_clamped=is_clamped,
                avoided=avoided,
                fill=fill,
                dtype=dtype,
            )
            np.testing.assert_array_equal(valid, known)
            np.testing.assert_array_equal(out, wanted)
            assert not (out[valid] == avoided).any()
