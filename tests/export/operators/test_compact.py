"""The functions in files are small, and still what their text says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import onnx
import onnx.parser
import pytest

from augserve.export.operators.body import function_body
from augserve.export.operators.compact import compact
from augserve.export.operators.functions import functions_of
from augserve.export.operators.solver import ROOT
from augserve.operators import OPERATORS

TEXT = """<opset_import: ["" : 18], domain: "test">
F <eps> (x, keep) => (y)
{
  unused = Constant <value = float {3.0}> ()
  summand = Constant <value_float: float = @eps> ()
  y = If (keep) <
    then_branch = yes () => (float[?] first) { first = Add (x, summand) },
    else_branch = no () => (float[?] second) {
      factor = Constant <value = float {2.0}> ()
      second = Mul (x, factor)
    }
  >
}
"""


def defined(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
    for node in nodes:
        yield from node.output
        for attribute in node.attribute:
            yield from (value.name for value in attribute.g.input)
            yield from defined(attribute.g.node)


def test_constants_go_to_the_top_and_names_become_short() -> None:
    small = compact(onnx.parser.parse_function(TEXT))
    assert [node.op_type for node in small.node] == ["Constant", "Constant", "If"]
    assert (list(small.input), list(small.output), list(small.attribute)) == (["x", "keep"], ["y"], ["eps"])
    assert max(map(len, {*defined(small.node)})) == 1


@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("name", OPERATORS)
def test_no_name_hides_another_one(name: str, root: bool) -> None:
    """ONNX Runtime would not mind; the reference implementation takes the wrong one."""
    function = function_body(OPERATORS[name], root)
    names = Counter([*function.input, *defined(function.node)])
    assert [name for name, times in names.items() if times > 1] == []


def test_the_function_for_one_exponent_is_taken_where_all_nodes_have_it() -> None:
    def operators(*exponents: float) -> set[str]:
        nodes = [onnx.helper.make_node("AugNorm", ["x"], ["y"], domain="augserve", phi=phi) for phi in exponents]
        (function,) = functions_of(nodes)
        (blocks,) = (node for node in function.node if node.op_type == "Loop")
        (passes,) = (node for node in blocks.attribute[0].g.node if node.op_type == "Loop")
        return {node.op_type for node in passes.attribute[0].g.node}

    assert "Exp" not in operators(ROOT, ROOT)
    assert "Exp" in operators(ROOT, 1.25)
