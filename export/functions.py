"""Operators that are made of others, as ONNX functions: exponents of their own, and what follows a norm.

AugNormLearned takes one input more, exponents (C), each in (1, inf): its channels below 2 and the others are two
solvers' work. Every operator has forms that do what follows it as well; the residual, of the shape of x, comes
last:

    NAMERelu: max(0, y),    NAMEAdd: y + residual,    NAMEAddRelu: max(0, y + residual)
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.parser

from augserve.export.operators import ABOVE_2, ATTRIBUTES, BELOW_2, INPUTS, OPERATORS, OPSET, function_body
from augserve.norms.symbolic import DOMAIN, LEARNED

ENDINGS = ("AddRelu", "Add", "Relu")

_FUNCTION = """<opset_import: ["" : 18, "{domain}" : 1], domain: "{domain}">
{name} <{attributes}> ({inputs}) => (y)
{{
{body}
}}
"""

_EITHER = """
  flat = Constant <value_ints = [0, 0, -1]> ()
  axis_1 = Constant <value_ints = [1]> ()
  two = Constant <value = float {{2.0}}> ()
  shape = Shape (x)
  x3 = Reshape (x, flat)
  is_below_2 = Less (exponents, two)
  is_below_2_column = Unsqueeze (is_below_2, axis_1)
  below = {below}
  above = {above}
  y3 = Where (is_below_2_column, below, above)
  {result} = Reshape (y3, shape)
"""
_ENDINGS = {
    "": "",
    "Relu": "  y = Relu (normed)",
    "Add": "  y = Add (normed, residual)",
    "AddRelu": "  sum = Add (normed, residual)\n  y = Relu (sum)",
}


def functions_of(names: Iterable[str], opset: int = OPSET) -> list[onnx.FunctionProto]:
    """Return the functions that nodes of these operators need: theirs and those that theirs call, each once.

    The called come before their callers, as readers that build them one by one need it.
    opset is that of the model: its standard operators and those in the functions are of one version.
    """
    functions: dict[str, onnx.FunctionProto] = {}

    def add(name: str) -> None:
        if name not in functions:
            function = function_body(name) if name in OPERATORS else _composed(name)
            for node in function.node:
                if node.domain == DOMAIN:
                    add(node.op_type)
            functions[name] = function

    for name in sorted(set(names)):
        add(name)
    for function in functions.values():
        for entry in function.opset_import:
            if entry.domain != DOMAIN:
                entry.version = opset
    return list(functions.values())


def _composed(name: str) -> onnx.FunctionProto:
    ending = next((ending for ending in ENDINGS if name.endswith(ending)), "")
    norm = name.removesuffix(ending)
    inputs = INPUTS + (("exponents",) if norm == LEARNED else ())
    result = "normed" if ending else "y"
    if norm == LEARNED:
        attributes = ATTRIBUTES[BELOW_2]
        flat = ("x3", *inputs[1:])
        below, above = (_call(half, attributes, flat) for half in (BELOW_2, ABOVE_2))
        body = _EITHER.format(below=below, above=above, result=result)
    else:
        attributes = ATTRIBUTES[norm]
        body = f"  {result} = {_call(norm, attributes, inputs)}\n"
    residual = ("residual",) if ending.startswith("Add") else ()
    text = _FUNCTION.format(
        domain=DOMAIN,
        name=name,
        attributes=", ".join(attributes),
        inputs=", ".join(inputs + residual),
        body=body + _ENDINGS[ending],
    )
    return onnx.parser.parse_function(text)


def _call(name: str, attributes: tuple[str, ...], inputs: tuple[str, ...]) -> str:
    given = ", ".join(f"{a}: {'int' if a == 'max_steps' else 'float'} = @{a}" for a in attributes)
    return f"{DOMAIN}.{name} <{given}> ({', '.join(inputs)})"
