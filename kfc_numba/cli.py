"""The command ``kfc-numba``: arguments, exit status, and one line for every error.

Exit status: 0 done (of a comparison, if not all of its runs diverged), 1 training could not go on,
2 wrong arguments, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from kfc_numba import datasets, interrupts, networks, process
from kfc_numba.commands import (
    CommandError,
    bench_cuda,
    compare,
    curvature,
    info,
    options,
    train,
    warm,
)
from kfc_numba.environment import ThreadsError, most_threads, start_threads, version
from kfc_numba.importing import STATUS


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
            raise CommandError(_unknown(unknown, arguments.known))
        start_threads()
        with _threads(getattr(arguments, "threads", None)):
            arguments.command(arguments)
        sys.stdout.flush()  # while a failure can still be told
    except CommandError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return error.code
    except ThreadsError as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
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


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        raise CommandError(f"{message} (see {self.prog} --help)")


def _parser() -> _Parser:
    parser = _Parser(
        prog="kfc-numba",
        allow_abbrev=False,
        description="Train convolutional networks by natural gradient (KFC).",
    )
    parser.add_argument("--version", action="version", version=f"kfc_numba {version('kfc_numba')}")
    commands = parser.add_subparsers(dest="name", metavar="COMMAND", parser_class=_Parser)

    one = _command(commands, "train", train.command, "train a network, or continue a run")
    _add_data(one)
    one.add_argument(
        "--optimizer",
        choices=options.OPTIMIZERS,
        metavar="NAME",
        help=f"{', '.join(options.OPTIMIZERS)} (kfc if not given)",
    )
    _add_training(one)
    one.add_argument(
        "--resume",
        action="store_true",
        help="continue the run in --output from its checkpoint, with the settings it has (and "
        "--epochs, --max-steps, --data and --learning-rate, if they are given)",
    )
    _add_optimizer_options(one)

    several = _command(
        commands, "compare", compare.command, "train the same network by several optimizers"
    )
    _add_data(several)
    several.add_argument(
        "--optimizers",
        nargs="+",
        choices=options.OPTIMIZERS,
        metavar="NAME",
        help=f"with their usual settings: {', '.join(options.OPTIMIZERS)} (kfc and sgd if neither "
        "this nor --run is given)",
    )
    several.add_argument(
        "--run",
        action="append",
        metavar="'NAME SETTING=VALUE ...'",
        help="an optimizer with settings of its own, as in 'kfc learning_rate=0.1 batch_size=512'; "
        "may be given several times",
    )
    several.add_argument(
        "--losses",
        nargs="+",
        type=_positive,
        metavar="LOSS",
        help="training losses whose steps and seconds are told "
        f"({' '.join(f'{loss:g}' for loss in compare.LOSSES)} if not given)",
    )
    _add_training(several)
    several.add_argument(
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
        "--only",
        default="",
        metavar="TEXT",
        help="kernels whose names contain this (all if not given)",
    )
    card.add_argument(
        "--parts",
        nargs="+",
        choices=bench_cuda.PARTS,
        default=bench_cuda.PARTS,
        metavar="PART",
        help=f"of {', '.join(bench_cuda.PARTS)} (all if not given)",
    )

    for command in commands.choices.values():
        known = [string for action in command._actions for string in action.option_strings]
        command.set_defaults(known=known)
    return parser


def _command(
    commands: Any, name: str, command: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False
    )
    parser.set_defaults(command=command)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dataset",
        choices=datasets.names(),
        metavar="NAME",
        help=f"{', '.join(datasets.names())} ({train.DATASET} if not given; it ships with the "
        "package)",
    )
    parser.add_argument(
        "--data", metavar="FOLDER", help="where the data set lies (or set KFC_NUMBA_DATA)"
    )
    parser.add_argument(
        "--download",
        action="store_true",
        help="download the data set if it is not found (needs the extra data)",
    )
    parser.add_argument(
        "--network",
        choices=networks.names(),
        metavar="NAME",
        help="; ".join(f"{name}: {networks.describe(name)}" for name in networks.names()),
    )


def _add_training(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--epochs", type=_integer, metavar="N", help=f"passes over the data ({train.EPOCHS})")
    add("--max-steps", type=_integer, metavar="N", help="steps after which to end in any case")
    add(
        "--batch-size",
        type=_integer,
        metavar="N",
        help=f"examples in a step ({options.BATCH_SIZE})",
    )
    add("--seed", type=_natural, metavar="N", help="seed of everything random (0)")
    add(
        "--evaluate-every",
        type=_integer,
        metavar="N",
        help="steps between evaluations (an epoch for train, a quarter of one for compare)",
    )
    add("--output", metavar="FOLDER", help="where results go (a new folder in runs/)")
    add("--quiet", action="store_true", help="no progress bar")
    _add_threads(parser)


def _add_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--checkpoint",
        metavar="FILE",
        help="checkpoint.safetensors of a run, whose parameters (averaged ones, if it has them) "
        "are taken (the initial ones if not given)",
    )
    batch, few, most = curvature.BATCH_SIZE, curvature.EXACT_EXAMPLES, curvature.LARGEST
    add("--batch-size", type=_integer, metavar="N", help=f"training examples ({batch})")
    add(
        "--exact-examples",
        type=_integer,
        metavar="N",
        help=f"of these, for the comparison with exact blocks and for correlations ({few})",
    )
    add(
        "--largest",
        type=_natural,
        metavar="N",
        help=f"parameters of a layer up to which it is compared with its exact block ({most})",
    )
    add(
        "--seed",
        type=_natural,
        metavar="N",
        help="of the network and of the choice of examples (0)",
    )
    add("--output", metavar="FOLDER", help="where results go (a new folder in runs/)")
    _add_threads(parser)


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


def _add_threads(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--threads", type=_integer, metavar="N", help="threads of the kernels")


def _add_optimizer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("options of the optimizer")
    defaults: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    flags = set()
    for optimizer, kind in options.OPTIMIZERS.items():
        for name, text in options.documentation(kind).items():
            texts.setdefault(name, text)
        for name, value in options.parameters(optimizer).items():
            defaults.setdefault(name, []).append(f"{optimizer}: {value}")
            if isinstance(value, bool):
                flags.add(name)
    for name, values in defaults.items():
        text = texts.get(name, "").replace("``", "").replace("`", "").replace("%", "%%")
        more: dict[str, Any] = {"nargs": "?", "const": True} if name in flags else {}
        group.add_argument(
            options.flag(name),
            type=options.literal,
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=f"{text} ({', '.join(values)})",
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
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return float(value)


def _unknown(unknown: Sequence[str], known: Sequence[str]) -> str:
    first = unknown[0].partition("=")[0]
    close = difflib.get_close_matches(first, known, 3)
    possible = f"did you mean {' or '.join(close)}?" if close else f"options: {', '.join(known)}"
    return f"{first} is no option; {possible}"


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
