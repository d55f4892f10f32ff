"""Write the table of this folder's README.md from the registry; with --check, only compare."""

import re
import sys
from pathlib import Path

from spem.gates import GATES, Gate, create_gate

PAGE = Path(__file__).with_name("README.md")
CHANNELS = 64
# Where an option has no default, or one that does not fit.
NEEDED = {"srp": {"rho": 0.5}, "sa": {"groups": 32}}
HEADER = f"""\
| name | key | paper | statistics | parameters at {CHANNELS} channels | family |
|---|---|---|---|---|---|
"""


def papers(key: str) -> str:
    """Return title, venue and year of every paper that the gate's page cites."""
    citation = PAGE.with_name(f"{key}.md").read_text(encoding="utf-8").split("## Citation\n")[1]
    found = re.findall(r"\*([^*]+)\*\.\s((?:[^.,]+\s)?\d{4})\b", citation)
    return "; ".join(" ".join(f"{title}, {venue}".split()) for title, venue in found)


def row(key: str) -> str:
    """Return the line of one gate."""
    gate = create_gate(key, CHANNELS, **NEEDED.get(key, {}))
    pooled = isinstance(gate, Gate)
    statistics = ", ".join(gate.statistics) or "none" if pooled else "–"
    parameters = sum(p.numel() for p in gate.parameters())
    cells = (f"[{GATES[key].__name__}]({key}.md)", f"`{key}`", papers(key), statistics)
    return f"| {' | '.join(cells)} | {parameters:,} | {gate.family} |\n"


def rendered() -> str:
    """Return the text of the page with the table as the registry has it now."""
    table = HEADER + "".join(map(row, GATES))
    page = PAGE.read_text(encoding="utf-8")
    return re.sub(r"(<!-- gates -->\n).*(<!-- end -->)", rf"\g<1>{table}\g<2>", page, flags=re.S)


if __name__ == "__main__":
    text = rendered()
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(text, encoding="utf-8")
    elif text != PAGE.read_text(encoding="utf-8"):
        sys.exit(f"{PAGE} is out of date: run python {sys.argv[0]}")
