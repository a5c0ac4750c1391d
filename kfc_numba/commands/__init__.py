"""What the subcommands of ``kfc-numba`` do; `kfc_numba.cli` reads their arguments."""


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
        super().__init__(" ".join(message.split()))
        self.code = code
