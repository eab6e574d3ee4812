"""One graph of a model behind one call: rows, groups and weights in, logits out.

A model is served in one or two forms. Rows with tracked statistics run on a folded graph where there is one, all
others on the adaptive graph; which of them a request takes depends on its settings alone. A file with batch
statistics takes no groups: there each group is a run.

On a CPU a form may hold its graph twice: a run that has the machine to itself takes all cores, unless it is of few
rows; one of two side by side takes half of them. Both give the same bits, or there is only the first (see
`self_check.same_bits`).
"""

from __future__ import annotations

import math
import time

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from augserve.operators import GROUP, STEERING, TRACKED_WEIGHT

CPU = "CPUExecutionProvider"


class Form:
    """A session and how it takes its inputs.

    Args:
        session: an open graph with one input of rows, and group and tracked_weight where it is adaptive.
        model: the name of the model that it belongs to.
        merges: whether rows of several groups may share a run.
        beside: the same graph with fewer threads, for a run beside others; None means `session`.
    """

    def __init__(
        self,
        session: ort.InferenceSession,
        model: str,
        *,
        merges: bool = True,
        beside: ort.InferenceSession | None = None,
    ) -> None:
        self.session = session
        self.beside = beside
        self.model = model
        self.merges = merges
        names = [node.name for node in session.get_inputs()]
        self._rows = next(name for name in names if name not in STEERING)
        self._adaptive = GROUP in names
        self._output = session.get_outputs()[0].name
        self._on_device = session.get_providers()[0] != CPU
        self._seconds: dict[int, float] = {}  # of the last run alone, by rows
        self.fill: int | None = None  # rows that fill a run beside others; None leaves it to the settings
        self.few = 0  # up to so many rows, a run alone takes the session `beside`

    def seconds_of(self, rows: int) -> float:
        """Return how long the last run of so many rows took that was alone; inf where there was none."""
        return self._seconds.get(rows, math.inf)

    def run(
        self,
        rows: npt.NDArray[np.float32],
        ids: npt.NDArray[np.int64],
        tracked_weight: npt.NDArray[np.float32],
        *,
        alone: bool = True,
    ) -> npt.NDArray[np.float32]:
        """Run rows.

        Args:
            rows: float32 (N, C, H, W).
            ids: int64 (N,), the group of each row.
            tracked_weight: float32 (N,), lambda of each row's group.
            alone: whether no other run is in progress; it says how many threads to take, and changes no number.

        Returns:
            Logits, float32 (N, K).
        """
        feed: dict[str, npt.NDArray[np.generic]] = {self._rows: rows}
        if self._adaptive:
            feed[GROUP] = ids
            feed[TRACKED_WEIGHT] = tracked_weight
        session = self.session
        if self.beside is not None and (not alone or len(rows) <= self.few):
            session = self.beside
        began = time.perf_counter()
        logits = self._run_bound(feed) if self._on_device else self._run(session, feed)
        if alone:
            self._seconds[len(rows)] = time.perf_counter() - began
        return logits

    def _run(
        self, session: ort.InferenceSession, feed: dict[str, npt.NDArray[np.generic]]
    ) -> npt.NDArray[np.float32]:
        logits: npt.NDArray[np.float32] = session.run([self._output], feed)[0]
        return logits

    def _run_bound(self, feed: dict[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.float32]:
        """Run with inputs and outputs bound: each is copied once, to the device and back."""
        binding = self.session.io_binding()
        for name, values in feed.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(values))
        binding.bind_output(self._output, "cpu")
        self.session.run_with_iobinding(binding)
        logits: npt.NDArray[np.float32] = binding.copy_outputs_to_cpu()[0]
        return logits
