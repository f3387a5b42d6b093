"""`flatminima landscape`: the loss on a line or a plane of weights, as numbers and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli import flags, screen
from flatminima.errors import InputError
from flatminima.progress import silent
from flatminima.training.recipe import flag

if TYPE_CHECKING:
    from flatminima.landscape import Landscape

SETTINGS: tuple[tuple[str, Callable[[str], Any], str, str], ...] = (
    (
        "directions",
        str,
        "KIND",
        "random (default), eigen (of the largest eigenvalues), extremes (largest and most "
        "negative), gradient, optimizer (its mean gradients), trajectory (principal directions of "
        "the run's path), between (through 2 or 3 RUNs)",
    ),
    ("dims", int, "{1,2}", "a line or a plane (default: 2; between: as the RUNs are)"),
    ("points", int, "N", "along each axis (default: 25)"),
    ("radius", float, "X", "the axes go from -X to X (default: 1)"),
    (
        "normalization",
        str,
        "WAY",
        "filter, layer, whole, unit, none (default: filter for random directions, else unit)",
    ),
    (
        "biases",
        str,
        "WAY",
        "biases and normalization layers: ignore, scale (default: ignore for random directions)",
    ),
    ("batchnorm", str, "WAY", "statistics: running (default), batch, recalibrate"),
    ("seed", int, "N", "of random directions, the same for all RUNs (default: 0)"),
    ("max_seconds", float, "X", "for each RUN; coarse points come first, and it can be continued"),
)
"""Flags, each a field of `SliceSettings`."""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "landscape",
        "RUN [RUN ...]",
        "draw the loss around trained weights, or between them",
        "flatminima landscape runs/plain runs/nso --points 25 --plot landscape.png",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="RUN",
        help="a run directory, one of its checkpoints, or (with --data) a transformers model",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file of all RUNs (default: landscape.json in each run, landscape-KIND.json for "
        "other directions than random)",
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it too: a .png, .svg, .pdf")
    parser.add_argument("--surface", action="store_true", help="draw planes as surfaces")
    group = parser.add_argument_group("what, and how finely")
    for name, kind, metavar, text in SETTINGS:
        group.add_argument(flag(name), dest=f"slice_{name}", type=kind, metavar=metavar, help=text)
    flags.add_recipe_flags(parser, ("data",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Slice, write and draw; what there is after Ctrl-C."""
    said = flags.given(arguments)
    if arguments.plot is not None:
        flags.check_picture(arguments.plot)
    from flatminima.training.processes import process_group

    with process_group() as first:
        return _slice(arguments, said, first)


def _slice(arguments: argparse.Namespace, said: dict[str, Any], first: bool) -> int:
    """What `run` does; of several processes the first writes and prints."""
    from flatminima.training.slicing import SliceSettings, slice_between, slice_target

    asked = {name: getattr(arguments, f"slice_{name}") for name, *_ in SETTINGS}
    settings = SliceSettings(**{k: v for k, v in asked.items() if v is not None})
    found: dict[str, Landscape] = {}
    with screen.progress_bars() as progress:
        common: dict[str, Any] = {"earlier": _partial, "progress": progress, "say": screen.say}
        if not first:
            common |= {"progress": silent, "say": _nothing}
        if settings.directions == "between":
            one, file = slice_between(arguments.targets, said, settings, **common)
            found[" - ".join(arguments.targets)] = one
            _write(one, file if first else None)
        else:
            _check_targets(arguments.targets)
            for target in arguments.targets:
                one, file = slice_target(target, said, settings, **common)
                found[target] = one
                _write(one, file if first else None)
                if one.stopped == "interrupted":
                    break
    early = any(one.stopped == "interrupted" for one in found.values())
    if not first:
        return 130 if early else 0
    for name, one in found.items():
        print(f"{name}: {one}")
    if arguments.out is not None:
        from flatminima.files import write_json

        write_json(arguments.out, {"landscapes": {n: one.to_dict() for n, one in found.items()}})
        print(f"written to {arguments.out}")
    if arguments.plot is not None:
        _draw(found, arguments.plot, "surface" if arguments.surface else "contour")
        print(f"drawn in {arguments.plot}")
    return 130 if early else 0


def _nothing(text: str) -> None:
    """Say nothing."""


def _check_targets(targets: list[str]) -> None:
    if len(set(targets)) < len(targets):
        raise InputError(f"a RUN is named twice: {', '.join(targets)}")


def _draw(found: dict[str, Landscape], path: Path, kind: str) -> None:
    from flatminima.landscape import compare_plot

    if len(found) > 1:
        figure = compare_plot(found, kind)
    else:
        figure = next(iter(found.values())).plot(kind=kind).figure
    figure.savefig(path, dpi=150)


def _partial(file: Path | None) -> Landscape | None:
    """What an earlier command left unfinished, if it can be read."""
    from flatminima.files import read_json
    from flatminima.landscape import Landscape

    if file is None or not _unfinished(file).is_file():
        return None
    try:
        return Landscape.from_dict(read_json(_unfinished(file)))
    except InputError as error:
        screen.say(str(error))
        return None


def _write(one: Landscape, file: Path | None) -> None:
    """Write a slice; a whole one is not overwritten by a part of one."""
    from flatminima.files import write_json

    if file is None:
        return
    if one.stopped == "done":
        write_json(file, one.to_dict())
        _unfinished(file).unlink(missing_ok=True)
        screen.say(f"written to {file}")
    else:
        write_json(_unfinished(file), one.to_dict())
        screen.say(f"written to {_unfinished(file)}; the same command goes on with it")


def _unfinished(file: Path) -> Path:
    return file.with_name(f"{file.stem}-partial{file.suffix}")
