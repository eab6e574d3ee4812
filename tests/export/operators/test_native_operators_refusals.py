"""What the native operators refuse: rows, groups and attributes that cannot be, each by its name."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from tests.export.operators.native_operator_cases import (
    ATTRIBUTES,
    NEEDS_LIBRARY,
    OPERATORS,
    SOLVER,
    Feed,
    feed,
    one_node,
    run,
    session,
)

pytestmark = NEEDS_LIBRARY


def refused(values: Feed, **changes: npt.ArrayLike) -> str:
    changed = {name: np.asarray(value, values[name].dtype) for name, value in changes.items()}
    opened = session(one_node("AugNorm"))
    with pytest.raises(Exception, match=r"augserve\.AugNorm: ") as caught:
        run(opened, {**values, **changed})
    np.testing.assert_array_equal(run(opened, values), run(opened, values))  # the session goes on
    return str(caught.value)


def test_impossible_groups_are_refused_by_row() -> None:
    values = feed(4) | {"group": np.zeros(4, np.int64), "tracked_weight": np.zeros(4, np.float32)}
    assert "group of row 2 is 4; expected an id from 0 to 3" in refused(values, group=[0, 1, 4, 0])
    assert "group of row 1 is -1; expected an id from 0 to 3" in refused(values, group=[0, -1, 0, 0])
    assert "group has 3 values; expected one dimension of 4" in refused(values, group=[0, 0, 0])
    text = "rows 0 and 2 of group 0 have tracked_weight 0 and 0.5; expected one for all rows of a group"
    assert text in refused(values, tracked_weight=[0, 0, 0.5, 0])
    assert "tracked_weight of row 0 is -0.5" in refused(values, tracked_weight=[-0.5] * 4)
    assert "tracked_weight of row 3 is nan" in refused(values, tracked_weight=[0, 0, 0, np.nan])
    assert "weight has 4 values; expected one dimension of 5" in refused(values, weight=[1] * 4)
    with pytest.raises(Exception, match=r"x has 1 dimensions; expected \(N, C, ...\)"):
        run(session(one_node("AugNorm", ("N",))), values | {"x": np.zeros(4, np.float32)})


def test_a_residual_of_another_shape_is_refused() -> None:
    values = feed(4)
    with pytest.raises(Exception, match="residual has another shape than x"):
        run(session(one_node("BatchNormAdd")), {**values, "residual": values["residual"][:, :, :1]})


@pytest.mark.parametrize("name", OPERATORS)
def test_missing_attributes_are_refused_by_name(name: str) -> None:
    for missing in ATTRIBUTES[name]:
        rest = {key: value for key, value in ATTRIBUTES[name].items() if key != missing}
        with pytest.raises(Exception, match=rf"augserve\.{name}: the node has no attribute {missing}\b"):
            session(one_node(name, attributes=rest))


def test_attributes_out_of_range_are_refused_when_the_file_is_opened() -> None:
    with pytest.raises(Exception, match=r"augserve\.AugNorm: the exponent is out of range"):
        session(one_node("AugNorm", attributes={"phi": 0.5, **SOLVER}))
    with pytest.raises(Exception, match=r"augserve\.AugNorm: .*max_steps at least 1"):
        session(one_node("AugNorm", attributes={"phi": 1.5, **SOLVER, "max_steps": 0}))
