"""Formulas as text, made safe and fast: text → allow-listed graph → register code → one precompiled kernel.

    text ──_tokens──► tokens ──_Parser──► graph of values ──_emit──► Program ──evaluate──► float raster

Nothing is ever handed to Python's own evaluator. The grammar, loosest first:

    a or b · a and b · not a · a < b <= c (also > >= == !=) · a | b · a & b · a + b, a - b · a * b, a / b, a % b ·
    -a, ~a · a ** b · numbers · names · (a) · f(a, …)

`|`, `&` and `~` join conditions only, so `a > 1 & b < 2` is refused instead of misread. The parser builds the graph
directly: equal subexpressions become one value and constants are folded, both across all formulas of a program, but
nothing is re-associated, so the result is bit for bit that of the formula as written. What is missing and what each
operation is defined on: see `eorouter_kernels.expression`.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn

import msgspec
import numpy as np

from eorouter_compute.errors import InvalidExpression
from eorouter_kernels import expression as machine

LENGTH_MAX = 4_096
DEPTH_MAX = 48
VALUES_MAX = 2_048
_NAMES_SHOWN = 60
REGISTERS_MAX = 160
# The register file of a block should fit the L2 cache beside the bands being read: 2**16 × 8 B = 512 KiB.
_REGISTER_FILE_VALUES = 1 << 16

CONSTANTS = {"pi": math.pi, "e": math.e}
_UNARY = {
    "abs": machine.ABS, "sqrt": machine.SQRT, "log": machine.LOG, "log10": machine.LOG10, "exp": machine.EXP,
    "sin": machine.SIN, "cos": machine.COS, "tan": machine.TAN, "atan": machine.ATAN, "floor": machine.FLOOR,
    "ceil": machine.CEIL,
}  # fmt: skip
_FOLDED = {"min": machine.MIN, "max": machine.MAX}
FUNCTIONS = tuple(sorted([*_UNARY, *_FOLDED, "atan2", "clip", "where"]))
_COMPARISONS = {
    "<": machine.LT, "<=": machine.LE, ">": machine.GT, ">=": machine.GE, "==": machine.EQ, "!=": machine.NE
}  # fmt: skip
_SUMS = {"+": machine.ADD, "-": machine.SUB}
_PRODUCTS = {"*": machine.MUL, "/": machine.DIV, "%": machine.MOD}
_COMMUTATIVE = {machine.ADD, machine.MUL, machine.MIN, machine.MAX, machine.EQ, machine.NE, machine.AND, machine.OR}
_CONDITIONS = {*_COMPARISONS.values(), machine.AND, machine.OR, machine.NOT}
_HINTS = {
    "^": "a power is written **", "//": "write floor(a / b)", "=": "equality is written ==", ".": "names have no dots",
    "[": "there is no indexing", "{": "there are no braces", '"': "there are no strings", "'": "there are no strings",
    "`": "there are no strings", ":": "there are no ranges or lambdas", ",": "commas stand between arguments only",
    "!": "negation is written not", "@": "a product is written *", "<<": "there are no shifts",
    ">>": "there are no shifts", ":=": "nothing can be assigned", "\\": "there is no line continuation",
}  # fmt: skip
_WORDS = ("and", "or", "not")
_WORDS_REFUSED = {"if": "write where(condition, a, b)", "else": "write where(condition, a, b)"}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)(?![0-9A-Za-z_.])"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<sign>\*\*|//|<=|>=|==|!=|<<|>>|:=|.))",
    re.ASCII | re.DOTALL,
)
_SIGNS = {"**", "<=", ">=", "==", "!=", "<", ">", "+", "-", "*", "/", "%", "&", "|", "~", "(", ")", ","}


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """A compiled set of formulas.

    Attributes:
        texts: the formulas, in output order.
        names: the bands the formulas read, in slot order.
        constants: the values of the first registers.
        code: instructions (op, target, a, b, c); see `eorouter_kernels.expression`.
        register_count: size of the register file.
    """

    texts: tuple[str, ...]
    names: tuple[str, ...]
    constants: tuple[float, ...]
    code: tuple[tuple[int, int, int, int, int], ...]
    register_count: int

    @property
    def block_size(self) -> int:
        """Pixels per block: as many as keep the register file in the cache, of a short program in its nearest half."""
        fitting = max(
            min(1_024, _REGISTER_FILE_VALUES // self.register_count), min(2_048, (1 << 13) // self.register_count)
        )
        return max(256, fitting // 64 * 64)


class Operand(NamedTuple):
    """Pixels of one band as stored; physical value = stored × `scale` + `offset`, missing where not `valid`."""

    pixels: np.ndarray
    scale: float = 1.0
    offset: float = 0.0
    valid: np.ndarray | None = None


def compile_expression(text: str, names: Collection[str], *, parameters: Mapping[str, float] | None = None) -> Program:
    """Compile one formula over the bands `names`; see `compile_expressions`."""
    return compile_expressions([text], names, parameters=parameters)


def compile_expressions(
    texts: Sequence[str], names: Collection[str], *, parameters: Mapping[str, float] | None = None
) -> Program:
    """Compile formulas that are evaluated together, in one pass over their bands.

    Args:
        texts: the formulas; one output each.
        names: bands a formula may read. A band hides a constant of the same name.
        parameters: numbers a formula may use by name; they become constants of the program.

    Raises:
        InvalidExpression: a formula is refused; `data` has `position` (characters from 0) and `expression` (its place
            in `texts`), and the message says what is allowed there.
    """
    frozen = tuple(sorted((parameters or {}).items()))
    return _compile(tuple(texts), frozenset(names), frozen)


@lru_cache(maxsize=256)
def _compile(texts: tuple[str, ...], names: frozenset[str], parameters: tuple[tuple[str, float], ...]) -> Program:
    graph = _Graph()
    known = {**CONSTANTS, **dict(parameters)}
    outputs = [_Parser(text, number, names, known, graph).parse() for number, text in enumerate(texts)]
    return _emit(texts, graph, outputs)


def evaluate(program: Program, operands: Mapping[str, Operand], *, dtype: str = "float32") -> np.ndarray:
    """All outputs of a program, (output, y, x), NaN where missing.

    Args:
        program: a compiled program.
        operands: every band of `program.names`, all of one shape. uint8 … int32, float32 and float64 are read as they
            are; other dtypes are converted first.
        dtype: float32 or float64. The arithmetic is float64 throughout; each result is rounded once.
    """
    shape = next(iter(operands.values())).pixels.shape
    empty, everything = np.empty(0, np.uint8), np.empty(0, np.bool_)
    bands, valids = [empty] * machine.SLOTS, [everything] * machine.SLOTS
    kinds = np.zeros(machine.SLOTS, np.int64)
    scales, offsets = np.ones(machine.SLOTS), np.zeros(machine.SLOTS)
    for slot, name in enumerate(program.names):
        operand = operands[name]
        if operand.pixels.shape != shape or (operand.valid is not None and operand.valid.shape != shape):
            raise ValueError(f"Band {name} is {operand.pixels.shape}, others are {shape}: one grid was expected.")
        known = operand.pixels.dtype.name in machine.DTYPES
        pixels = _plain(operand.pixels, operand.pixels.dtype.name if known else "float64")
        bands[slot] = pixels.view(np.uint8)
        kinds[slot] = machine.DTYPES.index(pixels.dtype.name)
        scales[slot], offsets[slot] = operand.scale, operand.offset
        if operand.valid is not None:
            valids[slot] = _plain(operand.valid, "bool")
    out = np.empty((len(program.texts), *shape), dtype)
    machine.run_program(
        np.array(program.code, np.int64).reshape(-1, 5),
        np.array(program.constants, np.float64),
        program.register_count,
        program.block_size,
        tuple(bands),
        kinds,
        scales,
        offsets,
        tuple(valids),
        out.reshape(len(program.texts), -1),
    )
    return out


def names_of(text: str) -> tuple[str, ...]:
    """The bands a formula reads when every name in it that is no constant may be one, in order of first use.

    Raises:
        InvalidExpression: as `compile_expressions`.
    """
    return compile_expression(
        text, [match["name"] for match in _TOKEN.finditer(text[:LENGTH_MAX]) if _is_free(match)]
    ).names


def _is_free(match: re.Match[str]) -> bool:
    name = match["name"]
    return bool(name) and name not in {*FUNCTIONS, *CONSTANTS, *_WORDS, *_WORDS_REFUSED}


def _plain(array: np.ndarray, dtype: str) -> np.ndarray:
    """The array in one row, in this machine's byte order, copied only if it must be.

    Numba has a type of its own for arrays that may not be written to; one of them among the bands would be another
    signature, compiled while the caller waits.
    """
    array = np.ascontiguousarray(array, dtype=dtype).reshape(-1)
    return array if array.flags.writeable else array.copy()


class _Token(NamedTuple):
    kind: str
    text: str
    position: int


class _Value(NamedTuple):
    """A node of the graph: a constant (`number`), a band (`name`) or an operation on earlier values."""

    op: int
    operands: tuple[int, ...] = ()
    name: str = ""
    number: float = 0.0


class _Graph:
    """Values in the order they are computed; equal values are one value."""

    def __init__(self) -> None:
        self.values: list[_Value] = []
        self._numbers: dict[Any, int] = {}

    def add(self, value: _Value) -> int:
        # repr tells 0.0 from -0.0, which 1 / x would tell apart too.
        key = (value.op, value.operands, value.name, repr(value.number))
        if key not in self._numbers:
            self._numbers[key] = len(self.values)
            self.values.append(value)
        return self._numbers[key]

    def is_constant(self, number: int) -> bool:
        value = self.values[number]
        return value.op == machine.LOAD and not value.name

    def is_condition(self, number: int) -> bool:
        return self.values[number].op in _CONDITIONS


class _Parser:
    """Precedence climbing over one formula, building values of the shared graph."""

    def __init__(
        self, text: str, number: int, names: frozenset[str], constants: Mapping[str, float], graph: _Graph
    ) -> None:
        self.text, self.number, self.names, self.constants, self.graph = text, number, names, constants, graph
        self.place, self.depth = 0, 0
        self.tokens = self._tokens()

    def parse(self) -> int:
        result = self._disjunction()
        if self._next.kind != "end":
            self._refuse(f"an operator was expected before {self._next.text!r}", self._next.position)
        return result

    # Tokens

    def _tokens(self) -> list[_Token]:
        if len(self.text) > LENGTH_MAX:
            self._refuse(f"the formula has {len(self.text)} characters, at most {LENGTH_MAX} are read", LENGTH_MAX)
        for position, character in enumerate(self.text):
            if not (" " <= character <= "~" or character in "\t\n\r"):
                self._refuse(f"{character!r} is not an ASCII character", position)
        tokens: list[_Token] = []
        end, stop = 0, len(self.text.rstrip())
        while end < stop:
            match = _TOKEN.match(self.text, end)
            if match is None or match.lastgroup is None:
                self._refuse("nothing readable", end)
            kind, position, end = match.lastgroup, match.start(match.lastgroup), match.end()
            text = match.group(match.lastgroup)
            if kind == "sign" and (text[0].isdigit() or (text == "." and self.text[end : end + 1].isdigit())):
                self._refuse("a malformed number; numbers look like 2, 0.5 or 1e-4", position)
            if kind == "sign" and text not in _SIGNS:
                self._refuse(f"{text!r} is not an operator; {_HINTS.get(text, 'it has no meaning here')}", position)
            tokens.append(_Token(kind, text, position))
        tokens.append(_Token("end", "the end", len(self.text)))
        return tokens

    @property
    def _next(self) -> _Token:
        return self.tokens[self.place]

    def _take(self, *texts: str) -> _Token | None:
        """The next token if it is one of `texts`; it is then consumed."""
        token = self._next
        if token.kind == "number" or token.text not in texts:
            return None
        self.place += 1
        return token

    def _refuse(self, why: str, position: int) -> NoReturn:
        raise InvalidExpression(
            f"At character {position}: {why}. A formula is made of numbers, names, + - * / % **, comparisons, "
            f"and/or/not, parentheses and the functions {', '.join(FUNCTIONS)}.",
            position=position,
            expression=self.number,
        )

    # Levels, loosest first

    def _disjunction(self) -> int:
        self.depth += 1
        if self.depth > DEPTH_MAX:
            self._refuse(f"nested deeper than {DEPTH_MAX} levels", self._next.position)
        left = self._conjunction()
        while token := self._take("or"):
            left = self._apply(token, machine.OR, left, self._conjunction())
        self.depth -= 1
        return left

    def _conjunction(self) -> int:
        left = self._negation()
        while token := self._take("and"):
            left = self._apply(token, machine.AND, left, self._negation())
        return left

    def _negation(self) -> int:
        signs = []
        while token := self._take("not"):
            signs.append(token)
        value = self._comparison()
        for token in reversed(signs):
            value = self._apply(token, machine.NOT, value)
        return value

    def _comparison(self) -> int:
        left = self._junction()
        chain = None
        while token := self._take(*_COMPARISONS):
            right = self._junction()
            link = self._apply(token, _COMPARISONS[token.text], left, right)
            chain = link if chain is None else self._apply(token, machine.AND, chain, link)
            left = right
        return left if chain is None else chain

    def _junction(self) -> int:
        left = self._meet()
        while token := self._take("|"):
            left = self._join(token, machine.OR, left, self._meet())
        return left

    def _meet(self) -> int:
        left = self._sum()
        while token := self._take("&"):
            left = self._join(token, machine.AND, left, self._sum())
        return left

    def _join(self, token: _Token, op: int, *operands: int) -> int:
        if not all(self.graph.is_condition(operand) for operand in operands):
            self._refuse(
                f"{token.text} joins conditions and binds tighter than a comparison; put each comparison in "
                f"parentheses, as in (a > 1) & (b < 2)",
                token.position,
            )
        return self._apply(token, op, *operands)

    def _sum(self) -> int:
        left = self._product()
        while token := self._take(*_SUMS):
            left = self._apply(token, _SUMS[token.text], left, self._product())
        return left

    def _product(self) -> int:
        left = self._signed()
        while token := self._take(*_PRODUCTS):
            left = self._apply(token, _PRODUCTS[token.text], left, self._signed())
        return left

    def _signed(self) -> int:
        signs = []
        while token := self._take("-", "+", "~"):
            signs.append(token)
        value = self._power()
        for token in reversed(signs):
            if token.text == "~":
                value = self._join(token, machine.NOT, value)
            elif token.text == "-":
                value = self._apply(token, machine.NEG, value)
        return value

    def _power(self) -> int:
        base = self._atom()
        token = self._take("**")
        if token is None:
            return base
        self.depth += 1
        if self.depth > DEPTH_MAX:
            self._refuse(f"nested deeper than {DEPTH_MAX} levels", token.position)
        exponent = self._signed()
        self.depth -= 1
        if self.graph.is_constant(exponent) and not self.graph.is_constant(base):
            # NumPy's own short cuts for a scalar exponent, so that results agree with it bit for bit.
            number = self.graph.values[exponent].number
            if number == 1.0:
                return base
            if number == 2.0:
                return self._apply(token, machine.MUL, base, base)
            if number == 0.5:
                return self._apply(token, machine.SQRT, base)
        return self._apply(token, machine.POW, base, exponent)

    def _atom(self) -> int:
        token = self._next
        self.place += 1
        if token.kind == "number":
            number = float(token.text)
            if not math.isfinite(number):
                self._refuse("the number is too large", token.position)
            return self.graph.add(_Value(machine.LOAD, number=number))
        if token.kind == "name":
            return self._named(token)
        if token.text == "(":
            value = self._disjunction()
            self._close(token)
            return value
        return self._refuse(f"a number, a name or ( was expected, not {token.text!r}", token.position)

    def _close(self, opening: _Token) -> None:
        if not self._take(")"):
            self._refuse(
                f") was expected for the ( at character {opening.position}, not {self._next.text!r}",
                self._next.position,
            )

    def _named(self, token: _Token) -> int:
        if opening := self._take("("):
            return self._call(token, opening)
        if token.text in self.names:
            return self.graph.add(_Value(machine.LOAD, name=token.text))
        if token.text in self.constants:
            return self.graph.add(_Value(machine.LOAD, number=float(self.constants[token.text])))
        if token.text in FUNCTIONS:
            self._refuse(f"{token.text} is a function; write {token.text}(…)", token.position)
        if token.text in _WORDS_REFUSED:
            self._refuse(f"{token.text!r} is not part of a formula; {_WORDS_REFUSED[token.text]}", token.position)
        every = [*sorted(self.names), *sorted(self.constants)]
        more = f" and {len(every) - _NAMES_SHOWN} more" if len(every) > _NAMES_SHOWN else ""
        offered = ", ".join(every[:_NAMES_SHOWN]) + more
        return self._refuse(f"the name {token.text!r} is not known; known are {offered}", token.position)

    def _call(self, token: _Token, opening: _Token) -> int:
        name = token.text
        if name not in FUNCTIONS:
            self._refuse(f"there is no function {name!r}", token.position)
        arguments = [self._disjunction()]
        while self._take(","):
            arguments.append(self._disjunction())
        self._close(opening)
        wanted = {"where": 3, "clip": 3, "atan2": 2}.get(name, 2 if name in _FOLDED else 1)
        if len(arguments) != wanted and not (name in _FOLDED and len(arguments) > wanted):
            least = "at least " if name in _FOLDED else ""
            self._refuse(f"{name} takes {least}{wanted} argument(s), {len(arguments)} were given", token.position)
        if name == "where":
            return self._apply(token, machine.WHERE, *arguments)
        if name == "clip":
            raised = self._apply(token, machine.MAX, arguments[0], arguments[1])
            return self._apply(token, machine.MIN, raised, arguments[2])
        if name == "atan2":
            return self._apply(token, machine.ATAN2, *arguments)
        if name in _UNARY:
            return self._apply(token, _UNARY[name], arguments[0])
        value = arguments[0]
        for argument in arguments[1:]:
            value = self._apply(token, _FOLDED[name], value, argument)
        return value

    def _apply(self, token: _Token, op: int, *operands: int) -> int:
        if all(self.graph.is_constant(operand) for operand in operands):
            numbers = [self.graph.values[operand].number for operand in operands]
            number = _fold(op, numbers)
            if not math.isfinite(number):
                shown = ", ".join(f"{n:g}" for n in numbers)
                self._refuse(f"{token.text!r} of the constants {shown} is not a finite number", token.position)
            return self.graph.add(_Value(machine.LOAD, number=number))
        if op in _COMMUTATIVE:
            operands = tuple(sorted(operands))
        value = self.graph.add(_Value(op, operands))
        if len(self.graph.values) > VALUES_MAX:
            self._refuse(f"the formulas have more than {VALUES_MAX} operations", token.position)
        return value


_FOLDS: dict[int, Callable[..., Any]] = {
    machine.WHERE: lambda c, a, b: a if c else b,
    machine.NEG: lambda a: -a,
    machine.NOT: lambda a: not a,
    machine.ABS: abs,
    machine.SQRT: math.sqrt,
    machine.LOG: math.log,
    machine.LOG10: math.log10,
    machine.EXP: math.exp,
    machine.SIN: math.sin,
    machine.COS: math.cos,
    machine.TAN: math.tan,
    machine.ATAN: math.atan,
    machine.FLOOR: math.floor,
    machine.CEIL: math.ceil,
    machine.ADD: lambda a, b: a + b,
    machine.SUB: lambda a, b: a - b,
    machine.MUL: lambda a, b: a * b,
    machine.DIV: lambda a, b: a / b,
    machine.MOD: lambda a, b: a % b,
    machine.POW: math.pow,
    machine.MIN: min,
    machine.MAX: max,
    machine.ATAN2: math.atan2,
    machine.LT: lambda a, b: a < b,
    machine.LE: lambda a, b: a <= b,
    machine.GT: lambda a, b: a > b,
    machine.GE: lambda a, b: a >= b,
    machine.EQ: lambda a, b: a == b,
    machine.NE: lambda a, b: a != b,
    machine.AND: lambda a, b: bool(a) and bool(b),
    machine.OR: lambda a, b: bool(a) or bool(b),
}


def _fold(op: int, numbers: Sequence[float]) -> float:
    """The operation on constants; NaN where it has no finite value."""
    try:
        return float(_FOLDS[op](*numbers))
    except (ArithmeticError, ValueError):
        return math.nan


def _reach(graph: _Graph, output: int) -> list[int]:
    """Every value an output depends on, itself included, in the order they are computed."""
    seen, waiting = {output}, [output]
    while waiting:
        fresh = set(graph.values[waiting.pop()].operands) - seen
        seen |= fresh
        waiting.extend(fresh)
    return sorted(seen)


def _guarded(graph: _Graph, output: int) -> int:
    """The output, made missing wherever a band it needs is: only `where` can hide that a band is invalid."""
    values = _reach(graph, output)
    if any(graph.values[number].op == machine.WHERE for number in values):
        for number in values:
            if graph.values[number].name:
                output = graph.add(_Value(machine.GUARD, (output, number)))
    return output


def _emit(texts: tuple[str, ...], graph: _Graph, outputs: Sequence[int]) -> Program:
    """Register code: values in graph order, each output stored as soon as it is known, registers reused when free."""
    outputs = [_guarded(graph, output) for output in outputs]
    needed = sorted({number for output in outputs for number in _reach(graph, output)})
    constants = [number for number in needed if graph.is_constant(number)]
    names = [graph.values[number].name for number in needed if graph.values[number].name]
    if len(names) > machine.SLOTS:
        raise InvalidExpression(
            f"The formulas read {len(names)} bands together, at most {machine.SLOTS} can be: {', '.join(names)}.",
            position=0,
            expression=0,
        )
    last_use = {number: number for number in needed}
    for number in needed:
        for operand in graph.values[number].operands:
            last_use[operand] = number
    registers = {number: place for place, number in enumerate(constants)}
    code: list[tuple[int, int, int, int, int]] = []
    free: list[int] = []
    count = len(constants)
    for number in needed:
        value = graph.values[number]
        if number not in registers:
            if not free:
                free.append(count)
                count += 1
            registers[number] = free.pop()
            a, b, c = (*(registers[operand] for operand in value.operands), 0, 0, 0)[:3]
            slot = names.index(value.name) if value.name else c
            code.append((value.op, registers[number], a, b, slot))
        code.extend(
            (machine.STORE, place, registers[number], 0, 0) for place, output in enumerate(outputs) if output == number
        )
        # Operands are freed after the target was chosen: no instruction works in place.
        spent = {operand for operand in (*value.operands, number) if last_use[operand] == number}
        free.extend(registers[operand] for operand in sorted(spent) if not graph.is_constant(operand))
    if count > REGISTERS_MAX:
        raise InvalidExpression(
            f"The formulas need {count} intermediate values at once, at most {REGISTERS_MAX} fit: use fewer at a time.",
            position=0,
            expression=0,
        )
    return Program(
        texts=texts,
        names=tuple(names),
        constants=tuple(graph.values[number].number for number in constants),
        code=tuple(code),
        register_count=max(count, 1),
    )
