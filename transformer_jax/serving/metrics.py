"""What the server has done, in Prometheus' text format."""

import collections
import pathlib
import re

_BOUNDS_S = 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0


class Metrics:
    """Counts answers by path and status, and the seconds that translations took."""

    def __init__(self):
        self._answers: collections.Counter[tuple[str, int]] = collections.Counter()
        self._within = dict.fromkeys([*map(str, _BOUNDS_S), "+Inf"], 0)  # of translations
        self._seconds = 0.0

    def observe(self, path: str, status: int, seconds: float) -> None:
        """Counts an answer; of translations, its seconds too."""
        self._answers[path, status] += 1
        if path == "/translate" and status == 200:
            self._seconds += seconds
            for bound in self._within:
                self._within[bound] += seconds <= float(bound)

    @property
    def translations(self) -> int:
        """Requests that were answered with translations."""
        return self._answers["/translate", 200]

    def text(self, gauges: dict[str, int], counters: dict[str, int]) -> str:
        """All of it, with further numbers by name."""
        answers = {f'{{path="{p}",status="{s}"}}': n for (p, s), n in self._answers.items()}
        seconds = {f'_bucket{{le="{bound}"}}': n for bound, n in self._within.items()}
        seconds |= {"_sum": round(self._seconds, 6), "_count": self.translations}
        status = pathlib.Path("/proc/self/status")
        memory = re.search(r"VmRSS:\s*(\d+)", status.read_text() if status.exists() else "")
        gauges = gauges | ({"memory_bytes": int(memory[1]) * 1024} if memory else {})
        families = [("requests_total", "counter", answers)]
        families += [("translate_seconds", "histogram", seconds)]
        families += [(name, "counter", {"": n}) for name, n in counters.items()]
        families += [(name, "gauge", {"": n}) for name, n in gauges.items()]
        lines = []
        for name, kind, values in families:
            name = f"transformer_jax_{name}"
            lines += [f"# TYPE {name} {kind}", *(f"{name}{x} {n}" for x, n in values.items())]
        return "\n".join(lines) + "\n"
