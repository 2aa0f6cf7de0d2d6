"""The bars say what happened to each chapter."""

import io

from rich.console import Console

from gleak_core.publish.execute import Event
from gleak_core.publish.progress import bars


def test_every_kind_of_event_is_shown() -> None:
    output = io.StringIO()
    with bars(Console(file=output, force_terminal=False, width=100)) as report:
        report(Event("01_a", "waiting"))
        report(Event("01_a", "cell", done=2, total=5))
        report(Event("01_a", "executed"))
        report(Event("02_b", "up to date"))
        report(Event("03_c", "cell", done=1, total=4))
        report(Event("03_c", "failed", message="no"))
    lines = [" ".join(line.split()) for line in output.getvalue().splitlines() if line.strip()]
    assert any(line.startswith("01_a executed") and "5/5" in line for line in lines)
    assert any(line.startswith("02_b up to date") and "1/1" in line for line in lines)
    assert any(line.startswith("03_c failed") and "1/4" in line for line in lines)
