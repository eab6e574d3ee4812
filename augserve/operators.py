"""The vocabulary of an augserve graph: its domain, operators, inputs and endings, and what spreads are divided by.

A norm is one node of the domain, in a graph that may take the statistics group and lambda of each row:

    graph    input, group, tracked_weight -> logits
    node     y = augserve::NAME(x, weight, bias, running_mean, running_spread, group, tracked_weight)

An operator may have inputs of its own behind these. Every operator has forms that do what follows the norm as well,
the residual, of the shape of x, as their last input:

    NAMERelu: max(0, y),    NAMEAdd: y + residual,    NAMEAddRelu: max(0, y + residual)

Layers, the exporter, the runtime and the service take all names from here. No torch, no onnx.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar

from augserve.errors import ModelFileError

DOMAIN = "augserve"
VERSION = 1

INPUT, GROUP, TRACKED_WEIGHT, LOGITS = "input", "group", "tracked_weight", "logits"
STEERING = (GROUP, TRACKED_WEIGHT)  # the inputs that an adaptive graph has beside those of its network
GRAPH_INPUTS = (INPUT, *STEERING)
NODE_INPUTS = ("x", "weight", "bias", "running_mean", "running_spread", *STEERING)
EXPONENTS, RESIDUAL = "exponents", "residual"

Spread = Literal["variance", "denominator", "range"]
Array = TypeVar("Array")


class Operator(NamedTuple):
    """A norm in a graph: its attributes, the spread that its statistics hold, and inputs of its own."""

    name: str
    attributes: tuple[str, ...]
    spread: Spread = "variance"
    inputs: tuple[str, ...] = ()


class Ending(NamedTuple):
    """What follows a norm within its node: an addition, then max(0, .)."""

    suffix: str
    adds: bool
    clips: bool


_SOLVER = ("eps", "rtol", "max_steps")
OPERATORS = {
    operator.name: operator
    for operator in (
        Operator("BatchNorm", ("eps",)),
        Operator("MedianNorm", ("eps",)),
        Operator("MidrangeNorm", ("eps",)),
        Operator("AugNorm", ("phi", *_SOLVER)),
        Operator("AugNormAbove2", ("phi", *_SOLVER)),
        Operator("AugNormLearned", _SOLVER, inputs=(EXPONENTS,)),
        Operator("RobustNorm", ("p", "eps"), "denominator"),
        Operator("RobustRangeNorm", ("p", "eps"), "range"),
    )
}
ENDINGS = (Ending("AddRelu", True, True), Ending("Add", True, False), Ending("Relu", False, True))
NO_ENDING = Ending("", False, False)


def operator_named(name: str) -> Operator:
    """Return the norm of this name.

    Raises:
        ModelFileError: an operator that is not one of these.
    """
    found = OPERATORS.get(name)
    if found is None:
        endings = ", ".join(ending.suffix for ending in ENDINGS)
        raise ModelFileError(
            f"unknown operator {DOMAIN}.{name}; the operators are: {', '.join(sorted(OPERATORS))} (each also with "
            f"{endings}); upgrade augserve, or export the file again"
        )
    return found


def parted(op_type: str) -> tuple[Operator, Ending]:
    """Return the norm of a node of the domain, and what follows it there.

    Raises:
        ModelFileError: an operator that is not one of these.

    Example:
        >>> operator, ending = parted("RobustNormAddRelu")
        >>> operator.spread, ending.suffix
        ('denominator', 'AddRelu')
    """
    ending = next((ending for ending in ENDINGS if op_type.endswith(ending.suffix)), NO_ENDING)
    return operator_named(op_type.removesuffix(ending.suffix)), ending


def divisor(
    spread: Array,
    kind: Spread,
    attributes: Mapping[str, Any],
    *,
    root: Callable[[Array], Array],
    power: Callable[[Array, float], Array],
) -> Array:
    """Return what x - center is divided by.

    variance: sqrt(spread + eps);    denominator: spread + eps;    range: spread^p + eps

    Args:
        spread: of each channel (C,), NumPy's, torch's or any other array.
        kind: what it is.
        attributes: eps, and p where it is a range.
        root: the square root of such arrays.
        power: such arrays to the power of a number.

    Example:
        >>> divisor(8.0, "variance", {"eps": 1.0}, root=lambda x: x**0.5, power=pow)
        3.0
    """
    eps: Any = attributes["eps"]
    if kind == "variance":
        return root(spread + eps)
    return (power(spread, attributes["p"]) if kind == "range" else spread) + eps  # type: ignore[no-any-return]
