"""Tables of README.md that are made from recorded figures: each stands between two markers, and a test compares them.

<!-- bench:NAME -->
| ... |
<!-- /bench:NAME -->
"""

import json
import re
from typing import Any

from tests.house import REPO

README = REPO / "README.md"
RESULTS = REPO / "tests" / "bench" / "results"


def recorded(name: str) -> dict[str, Any]:
    """The figures of a benchmark's last recorded run."""
    figures: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return figures


def record(name: str, figures: dict[str, Any]) -> None:
    """Keep a run's figures."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")


def in_readme(name: str) -> str:
    """What stands between a table's markers. Raises ValueError without them."""
    found = _block(name).search(README.read_text())
    if not found:
        raise ValueError(f"README.md has no <!-- bench:{name} --> ... <!-- /bench:{name} -->")
    return found[2]


def write(name: str, table: str) -> None:
    """Put a table between its markers. Raises ValueError without them."""
    in_readme(name)
    README.write_text(_block(name).sub(lambda found: found[1] + table + found[3], README.read_text()))


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


def _block(name: str) -> re.Pattern[str]:
    return re.compile(rf"(<!-- bench:{name} -->\n)(.*?)(<!-- /bench:{name} -->)", re.DOTALL)
