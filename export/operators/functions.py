"""The functions of a model's nodes: the norms' (see `body`), and those with what follows a norm.

Every operator has forms that do what follows it as well; the residual, of the shape of x, comes last:

    NAMERelu: max(0, y),    NAMEAdd: y + residual,    NAMEAddRelu: max(0, y + residual)
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
import onnx.parser

from augserve.export.operators.body import ATTRIBUTES, INPUTS, OPSET, OWN_INPUTS, function_body
from augserve.export.operators.compact import compact
from augserve.export.operators.solver import ROOT
from augserve.norms.symbolic import DOMAIN

_FUNCTION = """<opset_import: ["" : 18, "{domain}" : 1], domain: "{domain}">
{name} <{attributes}> ({inputs}) => (y)
{{
  normed = {call}
{ending}
}}
"""

_ENDINGS = {
    "AddRelu": "  sum = Add (normed, residual)\n  y = Relu (sum)",
    "Add": "  y = Add (normed, residual)",
    "Relu": "  y = Relu (normed)",
}


def functions_of(nodes: Iterable[onnx.NodeProto], opset: int = OPSET) -> list[onnx.FunctionProto]:
    """Return the functions that the nodes of this domain need: theirs and those that theirs call, each once.

    The called come before their callers, as readers that build them one by one need it.
    opset is that of the model: its standard operators and those in the functions are of one version.
    """
    own = [node for node in nodes if node.domain == DOMAIN]
    norms = {node.op_type: _parted(node.op_type)[0] for node in own}
    exponents = {
        a.f for node in own for a in node.attribute if norms[node.op_type] == "AugNorm" and a.name == "phi"
    }
    functions = [function_body(norm, root=exponents == {ROOT}) for norm in sorted(set(norms.values()))]
    functions += [_with_ending(name) for name in sorted(norms) if name != norms[name]]
    for function in functions:
        for entry in function.opset_import:
            if entry.domain != DOMAIN:
                entry.version = opset
    return functions


def _parted(name: str) -> tuple[str, str]:
    ending = next((ending for ending in _ENDINGS if name.endswith(ending)), "")
    return name.removesuffix(ending), ending


def _with_ending(name: str) -> onnx.FunctionProto:
    norm, ending = _parted(name)
    inputs = INPUTS + OWN_INPUTS[norm]
    given = ", ".join(f"{a}: {'int' if a == 'max_steps' else 'float'} = @{a}" for a in ATTRIBUTES[norm])
    source = _FUNCTION.format(
        domain=DOMAIN,
        name=name,
        attributes=", ".join(ATTRIBUTES[norm]),
        inputs=", ".join(inputs + (("residual",) if ending.startswith("Add") else ())),
        call=f"{DOMAIN}.{norm} <{given}> ({', '.join(inputs)})",
        ending=_ENDINGS[ending],
    )
    return compact(onnx.parser.parse_function(source))
