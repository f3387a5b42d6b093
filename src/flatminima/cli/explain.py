"""`flatminima explain`: where runs look when they disagree, and how their heads are tilted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flatminima.cli import flags, screen
from flatminima.errors import require

if TYPE_CHECKING:
    from flatminima.training.explained import Explanation


MOST_PLANES = 6
"""Planes in one picture."""


def names(text: str) -> tuple[str, ...]:
    """Names or globs between commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "explain",
        "RUN [RUN ...]",
        "show where runs look on the images they disagree on, and how their heads are tilted",
        "flatminima explain runs/plain runs/nso --plot maps.png --plane tilting.svg",
    )
    parser.add_argument(
        "targets",
        nargs="+",
        metavar="RUN",
        help="a run directory, one of its checkpoints, or (with --data) a transformers model; or "
        "one study",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="JSON file of all RUNs (default: explain.json in each run, which the report shows)",
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help="draw the maps too: a .png, .svg, .pdf"
    )
    parser.add_argument(
        "--plane",
        type=Path,
        metavar="FILE",
        help="draw each RUN's most tilted boundary in the tilting plane: a .png, .svg, .pdf",
    )
    group = parser.add_argument_group("what, and how")
    group.add_argument(
        "--saliency",
        dest="explain_method",
        metavar="NAME",
        help="norm-grad (default), selective, gradient, linear-approximation or grad-cam",
    )
    group.add_argument(
        "--layers",
        dest="explain_layers",
        type=names,
        metavar="GLOB,...",
        help="layers whose maps are multiplied (default: the last of each resolution; blocks of a "
        "transformer; the input of a perceptron)",
    )
    group.add_argument(
        "--meta-lr",
        dest="explain_meta_lr",
        type=float,
        metavar="X",
        help="meta-saliency: a step of this learning rate towards the class first, such as 0.0025",
    )
    group.add_argument(
        "--images",
        dest="explain_images",
        type=int,
        metavar="N",
        help="how many images have maps (default: 6; 0 for none)",
    )
    group.add_argument(
        "--head",
        dest="explain_head",
        metavar="NAME",
        help="the linear layer whose tilt is measured (default: the one that gives the logits)",
    )
    flags.add_recipe_flags(parser, ("data",))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Explain, print, write and draw."""
    said = flags.given(arguments)
    for picture in (arguments.plot, arguments.plane):
        if picture is not None:
            flags.check_picture(picture)
    from flatminima.files import write_json
    from flatminima.training.explained import ExplainSettings
    from flatminima.training.explaining import explain_targets

    wanted = {
        name.removeprefix("explain_"): value
        for name, value in vars(arguments).items()
        if name.startswith("explain_") and value is not None
    }
    with screen.progress_bars() as progress:
        found = explain_targets(
            arguments.targets,
            said,
            ExplainSettings(**wanted),
            progress=progress,
            say=screen.say,
        )
    for one in found:
        _print(one)
        if one.file is not None and arguments.out is None:
            write_json(one.file, one.to_dict())
            screen.say(f"written to {one.file}")
    if arguments.out is not None:
        write_json(arguments.out, {"explanations": {one.name: one.to_dict() for one in found}})
        print(f"written to {arguments.out}")
    if arguments.plot is not None:
        _draw_maps(found, arguments.plot)
    if arguments.plane is not None:
        _draw_planes(found, arguments.plane)
    return 0


def _print(one: Explanation) -> None:
    accuracy = "" if one.accuracy is None else f"test accuracy {one.accuracy:.4g}; "
    head = "no head" if one.tilts is None else f"layer {one.tilts} of the training set"
    print(f"{one.name}: {accuracy}{head}")
    if one.maps is not None:
        print(f"  maps of {', '.join(one.maps.layers)}: {one.maps.why}")
        for row in one.maps.rows:
            print(
                f"  {row['id']}: label {row['label']}, predicted {row['predicted']} "
                f"({row['confidence']:.2f})"
            )
    for note in one.notes:
        print(f"  {note}")


def _draw_maps(found: list[Explanation], path: Path) -> None:
    from flatminima.explain import saliency_plot
    from flatminima.explain.maps import resize

    shown = [one for one in found if one.maps is not None]
    if not shown:
        screen.say(f"{path} is not drawn: there are no maps")
        return
    first = shown[0].maps
    assert first is not None
    labels = [str(row["label"]) for row in first.rows]
    names = [Path(one.name).name for one in shown]
    if len(set(names)) < len(names):
        names = [one.name for one in shown]
    height, width = first.images.shape[2:]
    maps = {
        name: resize(one.maps.maps, (height, width))
        for name, one in zip(names, shown, strict=True)
        if one.maps is not None
    }
    # A product of layers is seen as their geometric mean, and else at a pixel or two.
    powers = {
        name: 1 / len(one.maps.layers)
        for name, one in zip(names, shown, strict=True)
        if one.maps is not None
    }
    saliency_plot(first.images, maps, labels, power=powers).savefig(path, dpi=150)
    print(f"drawn in {path}")


def _draw_planes(found: list[Explanation], path: Path) -> None:
    pyplot = require("matplotlib.pyplot", "plot")

    shown = [one for one in found if one.plane is not None][:MOST_PLANES]
    if not shown:
        screen.say(f"{path} is not drawn: no RUN has a linear head")
        return
    figure, axes = pyplot.subplots(
        1, len(shown), figsize=(4.6 * len(shown), 4.4), squeeze=False, layout="constrained"
    )
    for one, ax in zip(shown, axes[0], strict=True):
        assert one.plane is not None
        one.plane.plot(ax)
        ax.set_title(f"{one.name}\n{ax.get_title()}", fontsize=8)
    figure.savefig(path, dpi=150)
    print(f"drawn in {path}")
