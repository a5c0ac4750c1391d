"""What the subcommands of ``kfc-numba`` do; `kfc_numba.cli` reads their arguments."""

LONGEST = 1000  #: characters of a message


class CommandError(Exception):
    """A command cannot be done or finished: one line for the user, and the exit status.

    Parameters
    ----------
    message : str
        What is wrong and what is possible.
    code : int
        2 for wrong arguments, which is what most are.
    """

    def __init__(self, message: str, code: int = 2):
        line = " ".join(message.split())
        # What is quoted of a user's may be of any length: both ends tell what it is about.
        super().__init__(line if len(line) <= LONGEST else f"{line[:600]} [...] {line[-300:]}")
        self.code = code
