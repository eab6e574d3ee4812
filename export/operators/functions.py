"""The functions of a model's nodes: the norms' (see `body`), and those with what follows a norm."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.parser

from augserve.export.operators.body import function_body
from augserve.export.operators.compact import compact
from augserve.export.operators.solver import ROOT
from augserve.export.opsets import OPSET
from augserve.operators import DOMAIN, ENDINGS, NODE_INPUTS, RESIDUAL, Ending, Operator, parted

_FUNCTION = """<opset_import: ["" : 18, "{domain}" : 1], domain: "{domain}">
{name} <{attributes}> ({inputs}) => (y)
{{
  normed = {call}
{ending}
}}
"""


def functions_of(nodes: Iterable[onnx.NodeProto], opset: int = OPSET) -> list[onnx.FunctionProto]:
    """Return the functions that the nodes of this domain need: theirs and those that theirs call, each once.

    The called come before their callers, as readers that build them one by one need it.
    opset is that of the model: its standard operators and those in the functions are of one version.
    """
    own = [node for node in nodes if node.domain == DOMAIN]
    found = {node.op_type: parted(node.op_type) for node in own}
    norms = {operator.name: operator for operator, _ in found.values()}
    exponents = {
        a.f for node in own for a in node.attribute if found[node.op_type][0].name == "AugNorm" and a.name == "phi"
    }
    functions = [function_body(norms[name], root=exponents == {ROOT}) for name in sorted(norms)]
    functions += [_with_ending(*found[name]) for name in sorted(found) if found[name][1] in ENDINGS]
    for function in functions:
        for entry in function.opset_import:
            if entry.domain != DOMAIN:
                entry.version = opset
    return functions


def _with_ending(operator: Operator, ending: Ending) -> onnx.FunctionProto:
    inputs = NODE_INPUTS + operator.inputs
    given = ", ".join(f"{a}: {'int' if a == 'max_steps' else 'float'} = @{a}" for a in operator.attributes)
    after_norm = "sum" if ending.clips else "y"
    addition = f"  {after_norm} = Add (normed, {RESIDUAL})\n" if ending.adds else ""
    clipping = f"  y = Relu ({'sum' if ending.adds else 'normed'})" if ending.clips else ""
    source = _FUNCTION.format(
        domain=DOMAIN,
        name=operator.name + ending.suffix,
        attributes=", ".join(operator.attributes),
        inputs=", ".join(inputs + ((RESIDUAL,) if ending.adds else ())),
        call=f"{DOMAIN}.{operator.name} <{given}> ({', '.join(inputs)})",
        ending=addition + clipping,
    )
    return compact(onnx.parser.parse_function(source))
