"""The table of counts, as it is printed and as it is in docs/testing.md."""

BEGIN, END = "<!-- written by python -m tests.fuzz -->", "<!-- end -->"
_HEAD = """\
| kind | cases | accepted, and sound | refused, in one line | problems | most memory |
|---|---:|---:|---:|---:|---:|"""


def row(result):
    """Line of a table.

    Parameters
    ----------
    result : oracle.Result
    """
    counts = (result.cases, result.accepted, result.refused, len(result.problems))
    cells = " | ".join(f"{count:,}" for count in counts)
    return f"| {result.kind} | {cells} | {result.peak / 2**20:.0f} MB |"


def table(rows):
    """Lines by kind, with a head."""
    return "\n".join([_HEAD, *rows.values()])


def write_page(rows, path):
    """Put lines into the table of a page, in place of those of the same kinds.

    Parameters
    ----------
    rows : dict of str to str
    path : pathlib.Path
    """
    page = path.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    old, _, after = rest.partition(END)
    kept = [line for line in old.strip().splitlines() if line not in _HEAD.splitlines()]
    merged = {line.split("|")[1].strip(): line for line in kept} | rows
    path.write_text(f"{before}{BEGIN}\n{table(merged)}\n{END}{after}", "utf-8")
