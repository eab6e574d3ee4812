"""Where each operator leaves the rows of its inputs: the rules of `axis`, by name; see also `moves`.

Source: the operators' definitions, https://onnx.ai/onnx/operators, opsets 18 and newer.
"""

from __future__ import annotations

from augserve.export.foreign.rows import moves
from augserve.export.foreign.rows.axis import NotByRowError, Results, Rows, Rule, Step, axis_of, required

ACROSS = "works along the axis that holds the rows"


def _elementwise(step: Step) -> Results:
    """Right-aligned broadcasting: the rows have to meet on one axis."""
    found: Rows | None = None
    for k in range(len(step.kinds)):
        rows = step.rows(k)
        if rows is None:
            if not step.is_constant(k):
                raise NotByRowError("takes a value that depends on the number of rows")
            continue
        here = Rows(step.out_rank - step.rank(k) + rows.axis, rows.outer, rows.inner)
        if found is not None and not found.same(here):
            raise NotByRowError("combines rows that lie on different axes")
        found = here
    return [required(found)]


def _first_input(step: Step) -> Results:
    """Every element of the result stands where it stood in the first input, and depends on that one alone."""
    return [required(step.rows(0))]


def _on_first_axis(step: Step) -> Results:
    """Layers of images and sequences: the first input has its rows first, the others are weights."""
    step.only(0)
    return [_first(step, 0)]


def _all_on_first_axis(step: Step) -> Results:
    rows = [_first(step, k) for k in range(len(step.kinds)) if not step.is_constant(k)]
    if any(not row.same(rows[0]) for row in rows):
        raise NotByRowError("combines rows that lie in different ways")
    return [rows[0]]


def _max_pool(step: Step) -> Results:
    step.only(0)
    return [_first(step, 0), None]  # its indices count through all rows


def _along(default: int) -> Rule:
    """Return the rule of operators that mix one axis, given by `axis`."""

    def rule(step: Step) -> Results:
        step.only(0)
        rows = required(step.rows(0))
        if axis_of(step, default) == rows.axis:
            raise NotByRowError(ACROSS)
        return [rows]

    return rule


def _cumulative(step: Step) -> Results:
    step.only(0)
    rows, axis = required(step.rows(0)), step.setting(1)
    if axis is None or int(axis.reshape(-1)[0]) % step.rank(0) == rows.axis:
        raise NotByRowError(ACROSS)
    return [rows]


def _from_axis_on(step: Step) -> Results:
    """Layer normalization: all axes from `axis` on are mixed."""
    step.only(0)
    rows = required(step.rows(0))
    if axis_of(step, -1) <= rows.axis:
        raise NotByRowError(ACROSS)
    return [rows]


def _reduce(step: Step) -> Results:
    step.only(0)
    rows, rank = required(step.rows(0)), step.rank(0)
    axes = step.setting(1)
    given = step.attribute("axes") if axes is None else axes.reshape(-1).tolist()
    if not given:
        if step.attribute("noop_with_empty_axes", 0):
            return [rows]
        raise NotByRowError("reduces all axes, the one of the rows too")
    return [_reduced(rows, {int(axis) % rank for axis in given}, step.attribute("keepdims", 1))]


def _arg(step: Step) -> Results:
    step.only(0)
    return [_reduced(required(step.rows(0)), {axis_of(step, 0)}, step.attribute("keepdims", 1))]


def _reduced(rows: Rows, axes: set[int], keepdims: int) -> Rows:
    if rows.axis in axes:
        raise NotByRowError("reduces the axis that holds the rows")
    return rows if keepdims else Rows(rows.axis - sum(axis < rows.axis for axis in axes), rows.outer, rows.inner)


def _matmul(first: int, second: int) -> Rule:
    """Return the rule of a matrix product of the inputs at these places."""

    def rule(step: Step) -> Results:
        step.only(first, second)
        a, b = step.rows(first), step.rows(second)
        rank_a, rank_b = step.rank(first), step.rank(second)
        found = []
        if a is not None:
            if rank_a == 1 or a.axis == rank_a - 1:
                raise NotByRowError("sums over the rows")
            place = a.axis - rank_a + (1 if rank_b == 1 else 0)
            found.append(Rows(step.out_rank + place, a.outer, a.inner))
        if b is not None:
            if rank_b == 1 or b.axis == rank_b - 2:
                raise NotByRowError("sums over the rows")
            on_batch = b.axis < rank_b - 2
            place = b.axis - rank_b + (1 if rank_a == 1 and on_batch else 0)
            found.append(Rows(step.out_rank + place, b.outer, b.inner))
        if len(found) == 2 and not found[0].same(found[1]):
            raise NotByRowError("combines every row with every other")
        return [found[0]]

    return rule


def _gemm(step: Step) -> Results:
    step.only(0, 2)
    rows, bias = required(step.rows(0)), step.rows(2)
    if rows.axis != (1 if step.attribute("transA", 0) else 0):
        raise NotByRowError("sums over the rows")
    result = Rows(0, rows.outer, rows.inner)
    if bias is not None and not Rows(2 - step.rank(2) + bias.axis, bias.outer, bias.inner).same(result):
        raise NotByRowError("combines rows that lie on different axes")
    return [result]


def _matrices(step: Step) -> Results:
    """Functions of the last two axes."""
    step.only(0)
    rows = required(step.rows(0))
    if rows.axis >= step.rank(0) - 2:
        raise NotByRowError(ACROSS)
    return [rows]


def _recurrent(step: Step) -> Results:
    """X (steps, N, features), states (directions, N, features); with layout=1 the rows come first."""
    by_rows = step.attribute("layout", 0)
    expected = {0: 0 if by_rows else 1, 4: 0, 5: 0 if by_rows else 1, 6: 0 if by_rows else 1}
    for k in range(len(step.kinds)):
        rows = step.rows(k)
        if rows is not None:
            if k not in expected or not rows.same(Rows(expected[k])):
                raise NotByRowError("takes rows on an axis that is not the one of sequences")
        elif not step.is_constant(k):
            raise NotByRowError("takes a value that depends on the number of rows")
    state = Rows(0 if by_rows else 1)
    return [Rows(0 if by_rows else 2), state, state]


def _einsum(step: Step) -> Results:
    equation = step.attribute("equation").decode().replace(" ", "")
    terms, _, result = equation.partition("->")
    if "." in equation or not result:
        raise NotByRowError("has an equation whose axes are not all named")
    found = []
    for k, term in enumerate(terms.split(",")):
        rows = step.rows(k)
        if rows is None:
            if not step.is_constant(k):
                raise NotByRowError("takes a value that depends on the number of rows")
            continue
        label = term[rows.axis]
        if label not in result or term.count(label) > 1:
            raise NotByRowError("sums over the rows")
        found.append(Rows(result.index(label), rows.outer, rows.inner))
    if any(not rows.same(found[0]) for rows in found):
        raise NotByRowError("combines every row with every other")
    return [found[0]]


def _first(step: Step, k: int) -> Rows:
    rows = required(step.rows(k))
    if rows.axis != 0:
        raise NotByRowError(f"takes rows on axis {rows.axis}, where it expects channels or positions")
    return rows


def _table() -> dict[str, Rule]:
    groups: list[tuple[Rule, str]] = [
        (
            _elementwise,
            "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitwiseAnd BitwiseNot BitwiseOr BitwiseXor BitShift Cast "
            "Ceil Celu Clip Cos Cosh DequantizeLinear Div Dropout Elu Equal Erf Exp Floor Gelu Greater "
            "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min "
            "Mish Mod Mul Neg Not Or PRelu Pow QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin "
            "Sinh Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor",
        ),
        (_first_input, "CastLike"),
        (
            _on_first_axis,
            "AveragePool BatchNormalization Col2Im Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool "
            "GlobalLpPool GlobalMaxPool GroupNormalization InstanceNormalization LRN LpPool QLinearConv "
            "SpaceToDepth",
        ),
        (_all_on_first_axis, "DeformConv GridSample"),
        (_max_pool, "MaxPool"),
        (_along(-1), "Hardmax LogSoftmax LpNormalization Softmax TopK"),
        (_along(0), "Split"),
        (_cumulative, "CumSum"),
        (_from_axis_on, "LayerNormalization RMSNormalization"),
        (
            _reduce,
            "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum "
            "ReduceSumSquare",
        ),
        (_arg, "ArgMax ArgMin"),
        (moves.transpose, "Transpose"),
        (moves.reshape, "Flatten Reshape Squeeze Unsqueeze"),
        (_matmul(0, 1), "MatMul MatMulInteger"),
        (_matmul(0, 3), "QLinearMatMul"),
        (_gemm, "Gemm"),
        (moves.concat, "Concat"),
        (moves.cut, "Slice"),
        (moves.gather, "Gather"),
        (moves.gather_elements, "GatherElements ScatterElements"),
        (moves.gather_nd, "GatherND"),
        (moves.expand, "Expand"),
        (moves.tile, "Tile"),
        (moves.pad, "Pad"),
        (moves.resize, "Resize"),
        (moves.one_hot, "OneHot"),
        (_matrices, "Det Trilu"),
        (_recurrent, "GRU LSTM RNN"),
        (_einsum, "Einsum"),
    ]
    return {name: rule for rule, names in groups for name in names.split()}


RULES = _table()
