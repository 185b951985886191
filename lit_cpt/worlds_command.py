"""`lit-cpt worlds`: small worlds with models pretrained in them, which the ready grids start from."""

from __future__ import annotations

from lit_cpt.arguments import command_parser, parse
from lit_cpt.worlds import BASES, build_worlds

ABOUT = ("Small worlds of text and questions, and models pretrained in them: what the grids start from that lit_cpt "
         "ships. The same command goes on where it was stopped.")


def worlds_command(arguments: list[str]) -> None:
    """`lit-cpt worlds`.

    Raises:
        ValueError: A model that is not known, or a number out of range.
        ArmFailed: A pretraining failed; the others have been made.
        FileExistsError: A model was begun with another share of the steps.
    """
    parser = command_parser("worlds", ABOUT, "worlds --output worlds --seeds 0 1 2 --models full early --workers 2")
    parser.add_argument("--output", type=str, default="worlds", metavar="DIR", help="World N goes to DIR/N.")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="A world, and an initialisation of "
                        "each model, for each.")
    parser.add_argument("--models", nargs="+", type=str, default=["full"], help=f"Of {', '.join(BASES)}. full has half "
                        "a million parameters; early is the same, pretrained a fifth as long.")
    parser.add_argument("--workers", type=int, default=1, help="Models to pretrain at once.")
    parser.add_argument("--rehearse", type=float, default=1.0, metavar="SHARE", help="Pretrain only for this share of "
                        "the steps, such as 0.01, to see that all works.")
    given = parse(parser, arguments[1:])
    if unknown := [name for name in given["models"] if name not in BASES]:
        raise ValueError(f"--models {unknown[0]}: there are {', '.join(BASES)}.")
    if not 0 < given["rehearse"] <= 1:
        raise ValueError(f"--rehearse {given['rehearse']:g}: give a share of the steps, above 0 and at most 1.")
    if given["workers"] < 1:
        raise ValueError(f"--workers {given['workers']}: at least 1 model is pretrained at once.")
    build_worlds(given["output"], given["seeds"], given["models"], given["workers"], given["rehearse"])
