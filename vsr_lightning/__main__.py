"""The command line: `python -m vsr_lightning COMMAND experiments/….yaml [key=value …]`, and `… report RUN…`, `… compare
RUN…`."""

import argparse
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

from vsr_lightning.config import check_heeded, load_config, to_yaml
from vsr_lightning.errors import NothingRestored, UserError
from vsr_lightning.experiment import Experiment
from vsr_lightning.files import DISK_FULL

COMMANDS = {
    "data": "fetch, verify and convert the data that the experiment names",
    "train": "train the network of training.stage, or go on with it",
    "export": "write the prior's folder from the last checkpoint",
    "sweep": "restore every item of the grid, or finish a sweep; write tables, figures and a W&B run",
    "evaluate": "the same for an experiment that compares methods: its figures are tables and comparisons",
    "ablate": "train and measure the experiment's variants one after the other, and compare them",
    "oracle": "restore a sweep's clips being told the motion: what the observations allow, as oracle.csv",
    "figures": "draw the figures of a finished sweep or evaluation again",
    "report": "write one HTML page about run folders, named instead of an experiment",
    "compare": "print what restorations gain on a reference, in pairs, from run folders; compare --help tells more",
}
USES_GRID = ("sweep", "evaluate", "figures", "ablate")


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for a sweep in which everything failed, 2 for a mistake of the
    user's, or 130 when interrupted.

    Other than 0, after one line on stderr.
    """
    options = _parse(arguments)
    try:
        if options.command == "report":
            report(options.run_dirs, options.output)
            return 0
        if options.command == "compare":
            compare(options.run_dirs, options.reference, options.by, options.metric, options.output)
            return 0
        experiment = load_config(options.experiment, options.overrides)
        if options.command in USES_GRID:
            check_heeded(experiment, options.overrides)
            options.overrides = _fit_to_machine(experiment, options.overrides)
            experiment = load_config(options.experiment, options.overrides)
        if options.print_config:
            print(to_yaml(experiment), end="")
            return 0
        _quiet()
        if options.command == "ablate":
            ablate(experiment, options.experiment, options.overrides)
        else:
            run(options.command, experiment, options.limit, options.dry_run)
    except (UserError, NothingRestored) as error:
        if options.debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except OSError as error:  # no permission, no space, a file where a folder should be
        if options.debug:
            raise
        way_out = "; make room, then type the same command again" if error.errno in DISK_FULL else ""
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}{way_out}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = "starts again" if options.command in ("data", "oracle") else "goes on from what is on disk"
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"interrupted; the same command {again}", file=sys.stderr)
        return 130
    return 0


def run(command: str, experiment: Experiment, limit: int | None = None, dry: bool = False) -> None:
    # Imports are local: `--help` and `--print-config` need neither torch's compiler nor Lightning.
    if command == "data":
        from vsr_lightning.training.run import make_datamodule

        make_datamodule(experiment).fetch()
    elif command == "train":
        from vsr_lightning.training.run import train

        train(experiment)
    elif command == "export":
        from vsr_lightning.training.run import export

        if not experiment.prior:
            raise UserError("prior: name the folder to write, as prior=data/checkpoints/mine")
        export(experiment, Path(experiment.prior))
    elif command in ("sweep", "evaluate"):  # one machinery: the experiment says what is restored and drawn
        if dry:
            from vsr_lightning.evaluation.dry_run import dry_run

            print(dry_run(experiment, limit))
            return
        from vsr_lightning.evaluation.run import check_restored, sweep

        check_restored(sweep(experiment, limit))
    elif command == "oracle":
        from vsr_lightning.evaluation.oracle import oracle

        print(oracle(experiment))
    elif command == "figures":
        from vsr_lightning.evaluation.run import make_figures

        for path in make_figures(experiment, experiment.folder):
            print(path)


def ablate(experiment: Experiment, path: str, overrides: list[str]) -> None:
    from vsr_lightning import ablation

    variants = {
        variant: load_config(path, [*overrides, *map(str, changes), f"name={experiment.name}/{variant}"])
        for variant, changes in experiment.variants.items()
    }
    for variant, changes in experiment.variants.items():
        check_heeded(variants[variant], [*map(str, changes)])
    print(ablation.ablate(experiment, variants))


def report(run_dirs: list[Path], target: Path) -> None:
    from vsr_lightning.figures.report import make_report

    print(make_report(run_dirs, target))


def compare(
    run_dirs: list[Path], reference: list[tuple[str, str]], by: list[str], metric: str, target: Path | None
) -> None:
    from vsr_lightning import pairs
    from vsr_lightning.files import write_table

    if len(dict(reference)) < len(reference):
        raise UserError("--reference: names a column twice")
    lines = pairs.compare(run_dirs, dict(reference), by, metric)
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_table(target, list(lines[0]), lines)
    print(pairs.to_text(lines, [*dict(reference), *by]))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see --help\n")


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    arguments = sys.argv[1:] if arguments is None else arguments
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    # No subparsers: they cannot take overrides that follow an option.
    parser = {"report": _report_parser, "compare": _compare_parser}.get(str(command), _experiment_parser)()
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    options = parser.parse_intermixed_args(arguments)
    if options.command not in ("sweep", "evaluate"):
        for option in ("limit", "dry_run"):
            if getattr(options, option, None):
                parser.error(f"--{option.replace('_', '-')} is for sweep and evaluate, not for {options.command}")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of at least 1")
    return int(text)


def _experiment_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items())
    parser = _Parser(
        prog="python -m vsr_lightning",
        description=f"Video super-resolution with a video diffusion prior.\n\ncommands:\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands above")
    parser.add_argument("experiment", help="YAML file, as experiments/moving_mnist/sweep_frames.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as sampler.steps=250 grid.num_frames=[1,10]")
    parser.add_argument(
        "--dry-run", action="store_true", help="sweep, evaluate: tell what is missing, how long and how large; stop"
    )
    parser.add_argument(
        "--limit",
        type=_positive,
        metavar="N",
        help="sweep, evaluate: restore N items, of every condition first",
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved configuration and stop")
    return parser


def _report_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m vsr_lightning", description="Write one HTML page about run folders.")
    parser.add_argument("command", choices=["report"], metavar="report", help="this command")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN", help="folder of a sweep, as runs/frame_count")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/report.html"), metavar="FILE", help="the page (%(default)s)"
    )
    return parser


def _compare_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m vsr_lightning",
        description="What restorations gain on a reference, in pairs of the same video, noise and observation. "
        "Where the reference has several samplers, steps, zetas, priors or runs, pairs have the same one.",
        epilog="as: compare runs/guidance --reference zeta=0.5 --by factor,sigma_h",
    )
    parser.add_argument("command", choices=["compare"], metavar="compare", help="this command")
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN", help="folder of a sweep, as runs/guidance")
    parser.add_argument(
        "--reference",
        type=_assignments,
        action="extend",
        required=True,
        metavar="COLUMN=VALUE,…",
        help="what to compare with, as sampler=dps,steps=1000 or run=guidance",
    )
    parser.add_argument(
        "--by", type=_listed, action="extend", default=[], metavar="COLUMN,…", help="a line for each value of these"
    )
    parser.add_argument(
        "--metric", default="psnr_first", help="as psnr_mean, ssim_mean or psnr_first_of_mean (%(default)s)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the lines as CSV, too")
    return parser


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")]


def _assignments(text: str) -> list[tuple[str, str]]:
    pairs = [pair.partition("=") for pair in _listed(text)]
    if not all(column and separator for column, separator, _ in pairs):
        raise argparse.ArgumentTypeError(f"'{text}' is not as zeta=0.5, or sampler=dps,steps=1000")
    return [(column, value) for column, _, value in pairs]


def _fit_to_machine(experiment: Experiment, overrides: list[str]) -> list[str]:
    """Without a GPU, the overrides of the small preset, under a name of its own, unless full=true asks for it all."""
    import torch

    if not experiment.without_gpu or experiment.full or torch.cuda.is_available():
        return overrides
    if os.environ.get("LOCAL_RANK", "0") == "0":
        print(
            "no GPU here: taking the small preset; add full=true for the whole grid (days on a CPU)",
            file=sys.stderr,
        )
    return [f"name={experiment.name}_small", *experiment.without_gpu, *overrides]


def _quiet() -> None:
    """Hide notices that tell a user nothing to act on."""
    import logging

    os.environ.setdefault("POSSIBLE_USER_WARNINGS", "off")
    for name in ("utilities.rank_zero", "accelerators.cuda", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*Lazy modules.*",
        ".*lr_scheduler.step.*",
        ".*The `srun` command.*",
        "Total length of `DataLoader` across ranks is zero.*",  # a finished sweep
        "Mismatch dtype between input and weight.*",  # RMSNorm's float32 weights under autocast
    ):
        warnings.filterwarnings("ignore", message)


if __name__ == "__main__":
    sys.exit(main())
