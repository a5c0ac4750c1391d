"""What is made of the record: whether memory grew, and the lines of docs/testing.md."""

import textwrap

import numpy as np

#: Bytes by which a line through the memory of a process, from `WARM_UP` on, may rise.
MOST_GROWTH = 4 * 2**20
#: And for each checkpoint, which adds a row to the history: a dict, and some copies of the JSON of
#: all rows while a checkpoint is written.
MOST_FOR_ROW = 2048
WARM_UP = 0.25  # part of the time that it worked
#: Seconds that a process works before anything is said of its memory.
LEAST = 120

BEGIN, END = "<!-- written by python -m tests.soak -->", "<!-- end -->"


def growth(reports):
    """By how much memory, open files and threads of a process grew, by its reports.

    Parameters
    ----------
    reports : list of list of float
        The numbers of `training.measured`, one for each checkpoint: steps, seconds that it worked,
        bytes of memory, open files, threads.

    Returns
    -------
    dict
        ``problems`` are those of processes that worked long enough to tell.
    """
    if not reports or reports[-1][1] < LEAST:
        return {"problems": []}
    _, cpu, memory, files, threads = np.array(reports, float).T
    late = cpu >= WARM_UP * cpu[-1]
    begun = int(late.argmax())
    slope = np.polyfit(cpu[late] - cpu[-1], memory[late], 1)[0]
    rise = slope * (cpu[-1] - cpu[begun])
    problems = []
    allowed = MOST_GROWTH + MOST_FOR_ROW * np.count_nonzero(late)
    if rise > allowed:
        problems.append(f"memory grew by {rise / 2**20:.1f} MB, {allowed / 2**20:.1f} allowed")
    for name, values in (("open files", files), ("threads", threads)):
        if values.max() > values[: begun + 1].max():
            problems.append(f"{name} grew to {values.max():.0f}")
    return {
        "rise": round(rise),
        "allowed": round(allowed),
        "seconds": round(cpu[-1] - cpu[begun]),
        "mean": round(memory[late].mean()),
        "most": int(memory.max()),
        "problems": problems,
    }


def text(record):
    """The outcome, in some lines.

    Parameters
    ----------
    record : dict
        As `soak.Soak.run` returns it.
    """
    kills = ", ".join(f"{count:,} {name}" for name, count in sorted(record["kills"].items()))
    lines = [
        f"{record['processor_seconds'] / 3600:.2f} hours of a processor: "
        f"{record['steps']:,} steps in {record['segments']:,} segments, "
        f"{record['checkpoints']:,} checkpoints;",
        f"{sum(record['kills'].values()):,} kills ({kills}; "
        f"{record['kills_that_left_half_a_file']:,} of them left part of a file).",
    ]
    memory, problems = record["memory"], record["problems"]
    if memory:
        lines.append(
            f"Memory of the process that nothing happened to: {memory['mean'] / 2**20:.0f} MB; "
            f"a line through it rises by {memory['rise'] / 2**20:.2f} MB in "
            f"{memory['seconds'] / 60:.0f} minutes ({memory['allowed'] / 2**20:.1f} allowed, most "
            "of it for the rows of the history)."
        )
    lines.append(
        f"**Problems: {len(problems)}.** " + "; ".join(problems)
        if problems
        else "All segments ended with the same bits."
    )
    return textwrap.fill(" ".join(lines), 100)


def write_page(record, path):
    """Put the outcome between its markers.

    Parameters
    ----------
    record : dict
    path : pathlib.Path
    """
    page = path.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{text(record)}\n{END}{after}", "utf-8")
