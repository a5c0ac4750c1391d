"""The command ``kfc-numba``: arguments, exit status, and one line for every error.

Exit status: 0 done (of a comparison, if not all of its runs diverged), 1 training could not go on,
2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from kfc_numba import datasets, interrupts, networks, process, variables
from kfc_numba.commands import (
    CommandError,
    bench_cuda,
    compare,
    curvature,
    info,
    options,
    run,
    train,
    warm,
)
from kfc_numba.environment import most_threads, start_threads, version
from kfc_numba.importing import STATUS
from kfc_numba.precision import tensor_cores
from kfc_numba.progress import WIDTH
from kfc_numba.variables import VariableError


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the name of the program; those of the process if None.

    Returns
    -------
    int
        Exit status.
    """
    with process.prepared("kfc-numba"):
        return interrupts.guarded(lambda: _run(argv))


def _run(argv: Sequence[str] | None) -> int:
    """Do what the arguments say; errors are told here, in one line."""
    parser = _parser()
    program = parser.prog
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if arguments.name is None:
            raise CommandError("give a command: train, compare, curvature, warm or info")
        program = f"{program} {arguments.name}"
        if unknown:
            raise CommandError(_unknown(unknown[0], arguments.name, arguments.known))
        if hasattr(arguments, "device"):
            run.usable(arguments.device, arguments.tf32)
        variables.check()
        start_threads()
        threads, tf32 = getattr(arguments, "threads", None), getattr(arguments, "tf32", None)
        with _threads(threads), tensor_cores(bool(tf32)):
            arguments.command(arguments)
        sys.stdout.flush()  # while a failure can still be told
    except (CommandError, VariableError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.code if isinstance(error, CommandError) else 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return STATUS
    except MemoryError as error:
        print(f"{program}: not enough memory{f' ({error})' if str(error) else ''}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"{program}: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    return 0


class _Formatter(argparse.HelpFormatter):
    """As wide as the terminal, and no wider than what is printed elsewhere."""

    def __init__(self, prog: str):
        columns = shutil.get_terminal_size().columns - 2
        super().__init__(prog, max_help_position=30, width=min(WIDTH, columns))


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage before it."""

    def __init__(self, **settings: Any):
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="kfc-numba",
        description="Train convolutional networks by natural gradient (KFC).",
    )
    parser.add_argument("--version", action="version", version=f"kfc_numba {version('kfc_numba')}")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", parser_class=_Parser)

    one = _command(commands, "train", train.command, "train a network, or continue a run")
    _add_data(one)
    training = _add_training(one)
    training.add_argument(
        "--optimizer",
        choices=options.OPTIMIZERS,
        metavar="NAME",
        help=f"what trains it: {', '.join(options.OPTIMIZERS)} (kfc)",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --output from its checkpoint, with the settings it has (and "
        "--epochs, --max-steps, --data and --learning-rate, if they are given)",
    )
    _add_results(one, "the result in two lines, at the end,")
    _add_optimizer_options(one)

    several = _command(
        commands, "compare", compare.command, "train the same network by several optimizers"
    )
    _add_data(several)
    training = _add_training(several)
    training.add_argument(
        "--optimizers",
        nargs="+",
        choices=options.OPTIMIZERS,
        metavar="NAME",
        help=f"with their usual settings: {', '.join(options.OPTIMIZERS)} (kfc and sgd if neither "
        "this nor --run is given)",
    )
    training.add_argument(
        "--run",
        action="append",
        metavar="'NAME SETTING=VALUE ...'",
        help="an optimizer with settings of its own, as in 'kfc learning_rate=0.1 batch_size=512'; "
        "may be given several times; kfc-numba train --help explains settings",
    )
    results = _add_results(several, "the table, at the end,")
    results.add_argument(
        "--losses",
        nargs="+",
        type=_positive,
        metavar="LOSS",
        help="training losses that the table has the steps and seconds to "
        f"({' '.join(f'{loss:g}' for loss in compare.LOSSES)})",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="continue the comparison in --output: its runs that are not finished",
    )

    report = _command(
        commands,
        "curvature",
        curvature.command,
        "how far each approximation of the curvature is from the exact one, and what it costs",
    )
    _add_data(report)
    _add_report(report)

    ahead = _command(
        commands, "warm", warm.command, "compile the kernels of the usual trainings ahead of time"
    )
    _add_warming(ahead)

    about = _command(commands, "info", info.command, "versions, processor, threads, CUDA")
    _add_threads(about)

    card = _command(
        commands, "bench-cuda", bench_cuda.command, "compare and time all kernels on an NVIDIA card"
    )
    card.add_argument("--json", metavar="FILE", help="where all numbers are written")
    card.add_argument(
        "--only", default="", metavar="TEXT", help="kernels whose names contain this (all)"
    )
    card.add_argument(
        "--parts",
        nargs="+",
        choices=bench_cuda.PARTS,
        default=bench_cuda.PARTS,
        metavar="PART",
        help=f"of {', '.join(bench_cuda.PARTS)} (all)",
    )
    run.add_tf32(card)

    known = {
        name: [string for action in command._actions for string in action.option_strings]
        for name, command in commands.choices.items()
    }
    for command in commands.choices.values():
        command.set_defaults(known=known)
    return parser


def _command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name,
        help=text,
        usage="%(prog)s [options]",
        description=f"{text[0].upper()}{text[1:]}. Values in parentheses are those of options that "
        "are not given.",
    )
    parser.set_defaults(command=command)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("data and network").add_argument
    add(
        "--dataset",
        choices=datasets.names(),
        metavar="NAME",
        help=f"images to train on: {', '.join(datasets.names())} ({train.DATASET}, which ships "
        "with the package)",
    )
    add("--data", metavar="FOLDER", help="where the data set lies (KFC_NUMBA_DATA)")
    add(
        "--download",
        action="store_true",
        help="download the data set if it is not found (needs the extra data)",
    )
    add(
        "--network",
        choices=networks.names(),
        metavar="NAME",
        help="; ".join(f"{name}: {networks.describe(name)}" for name in networks.names())
        + " (small for images of one channel, quick for others)",
    )


def _add_training(parser: argparse.ArgumentParser) -> Any:
    group = parser.add_argument_group("training")
    add = group.add_argument
    add(
        "--epochs",
        type=_integer,
        metavar="N",
        help=f"passes over the data; usually 5 to 50 ({train.EPOCHS})",
    )
    add(
        "--max-steps",
        type=_integer,
        metavar="N",
        help="steps after which training ends, however many epochs were asked for (no limit)",
    )
    add(
        "--batch-size",
        type=_integer,
        metavar="N",
        help="examples in a step: more make it dearer and less noisy, and a kfc step longer; "
        f"usually 32 to 1024 ({options.BATCH_SIZE})",
    )
    add(
        "--seed",
        type=_natural,
        metavar="N",
        help="key of everything random: the same gives the same result; any number (0)",
    )
    run.add_device(group, "training")
    _add_threads(group)
    return group


def _add_results(parser: argparse.ArgumentParser, rest: str) -> Any:
    group = parser.add_argument_group("results")
    add = group.add_argument
    add(
        "--evaluate-every",
        type=_integer,
        metavar="N",
        help="steps between evaluations, which are not counted as training; usually 10 to 1000 "
        "(an epoch for train, a quarter of one for compare)",
    )
    add("--output", metavar="FOLDER", help="where results go (a new folder in runs/)")
    add("--quiet", action="store_true", help=f"print nothing but {rest} and errors")
    return group


def _add_report(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("report")
    add = group.add_argument
    add(
        "--checkpoint",
        metavar="FOLDER",
        help="run folder, or a checkpoint in it, whose parameters (averaged ones, if it has them) "
        "are taken, with its network and data set (initial ones if not given)",
    )
    batch, few, most = curvature.BATCH_SIZE, curvature.EXACT_EXAMPLES, curvature.LARGEST
    add(
        "--batch-size",
        type=_integer,
        metavar="N",
        help=f"training examples that curvature is of; usually 100 to 1000 ({batch})",
    )
    add(
        "--exact-examples",
        type=_integer,
        metavar="N",
        help="of these, those for the comparison with exact blocks and for correlations, which "
        f"take long; usually 10 to 100 ({few})",
    )
    add(
        "--largest",
        type=_natural,
        metavar="N",
        help="parameters of a layer up to which it is compared with its exact block; usually "
        f"1000 to 100000 ({most})",
    )
    add(
        "--seed",
        type=_natural,
        metavar="N",
        help="key of the network's parameters and of the choice of examples; any number (0)",
    )
    add("--output", metavar="FOLDER", help="where results go (a new folder in runs/)")
    run.add_device(group, "the network")
    _add_threads(group)


def _add_warming(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--networks",
        nargs="+",
        choices=networks.names(),
        metavar="NAME",
        help=f"some of {', '.join(networks.names())} (all)",
    )
    add(
        "--optimizers",
        nargs="+",
        choices=options.OPTIMIZERS,
        metavar="NAME",
        help=f"some of {', '.join(options.OPTIMIZERS)} (all)",
    )
    add("--batch-size", type=_integer, metavar="N", help=f"examples ({options.BATCH_SIZE})")
    _add_threads(parser)


def _add_threads(parser: Any) -> None:
    parser.add_argument(
        "--threads",
        type=_integer,
        metavar="N",
        help="threads of the kernels, which change time and not results; usually the processor's "
        "cores (all of them)",
    )


def _add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    defaults: dict[str, list[Any]] = {}
    for optimizer in options.OPTIMIZERS:
        for name, value in options.parameters(optimizer).items():
            defaults.setdefault(name, []).append(value)
    listed = [name for names in options.SUBJECTS.values() for name in names]
    subjects = options.SUBJECTS | {"other": tuple(n for n in defaults if n not in listed)}
    for subject, names in subjects.items():
        group = parser.add_argument_group(f"optimizer: {subject}")
        for name in names:
            if name not in defaults:
                continue
            flag = any(isinstance(value, bool) for value in defaults[name])
            more: dict[str, Any] = {"nargs": "?", "const": True} if flag else {}
            group.add_argument(
                options.flag(name),
                type=options.literal,
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=options.explanation(name).replace("%", "%%"),
                **more,
            )


def _integer(text: str) -> int:
    return _at_least(1, text)


def _natural(text: str) -> int:
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    value = options.literal(text)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer of at least {least}")
    return value


def _positive(text: str) -> float:
    value = options.literal(text)
    right = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not right or not 0 < value <= sys.float_info.max:
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number above 0")
    return float(value)


def _unknown(word: str, command: str, known: Mapping[str, Sequence[str]]) -> str:
    """What is said of a word that is no option of a command."""
    word = word.partition("=")[0]
    if not word.startswith("-"):
        return f"{word!r} is not expected: settings are --NAME VALUE (see --help)"
    others = [name for name, flags in known.items() if word in flags]
    if "train" in others and command == "compare":
        hint = f"settings of an optimizer are given as --run 'NAME {word.strip('-')}=VALUE'"
    elif others:
        hint = f"kfc-numba {others[0]} has it"
    else:
        hint = options.meant(word, known[command])
    return f"{word} is no option; {hint}"


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Run with a number of threads; the caller's is put back."""
    if count is None:
        yield
        return
    import numba

    most = most_threads()
    if count > most:
        raise CommandError(
            f"--threads {count} must be from 1 to {most}, the number of threads that Numba has "
            "(NUMBA_NUM_THREADS raises it)"
        )
    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        yield
    finally:
        numba.set_num_threads(before)
