"""`flatminima pretrain`: one run on images alone, whose ViT `finetune` then takes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flatminima.cli import finetune, flags, screen
from flatminima.errors import InputError

FIXED = {"task": "masked-images"}
"""What makes a run one of pretraining."""

DEFAULTS = {"measure": False}
"""What it does otherwise than `finetune` where it is not told."""


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    parser = flags.add_command(
        commands,
        "pretrain",
        "--out DIR",
        "learn from images without labels, by Hard Patches Mining, and leave a ViT to fine-tune",
        "flatminima pretrain --data photos --model vit-tiny --epochs 100 --out runs/p\n"
        "  flatminima finetune --data photos --model runs/p/checkpoints/last --out runs/f",
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, metavar="DIR", help="new directory for the run")
    where.add_argument(
        "--resume", type=Path, metavar="DIR", help="continue the run in this directory"
    )
    flags.add_recipe_flags(parser, flags.TITLES, leave_out=FIXED)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Train, print what came out, and draw some masks."""
    said = flags.given(arguments)
    if said.get("task") not in (None, FIXED["task"]):
        raise InputError(
            f"the recipe's task is {said['task']}, and pretraining looks at images alone: leave it "
            "out, or use flatminima finetune"
        )
    if arguments.resume is None:
        said = {**DEFAULTS, **said, **FIXED}
    finetune.carry_out(arguments, said, command="pretrain")
    out: Path = arguments.resume or arguments.out
    from flatminima.training.mask_pictures import draw_masks

    try:
        print(f"masks: {draw_masks(out)}")
    except InputError as error:
        screen.say(f"no picture: {error}")
    print(f"fine-tune it with: flatminima finetune --model {out / 'checkpoints/last'}")
