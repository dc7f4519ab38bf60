"""Command line: run a notebook or a recipe, once or for many values, write the report, list what there is."""

import argparse
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from workbench import BAD_INPUT, DONE, STOPPED, WorkbenchError
from workbench.pipeline.cluster import dask_executor
from workbench.pipeline.notebooks import find, notebook_paths, read_notebook
from workbench.pipeline.recipes import Plan, plan_notebook, plan_recipe, read_recipe, recipe_paths
from workbench.pipeline.schedule import run_plan
from workbench.pipeline.sweeps import plan_sweep, run_sweep
from workbench.runs import names_in
from workbench.runs.files import resolve, shown, user_path
from workbench.runs.record import refuse_other_report

ABOUT = "Run the workbench's notebooks with checked parameters, and show what came out."
EXAMPLES = """examples:
  workbench list                                   what can be run
  workbench list 06_policy_gradient                a notebook's parameters
  workbench run tour                               a recipe: the whole story
  workbench run 06_policy_gradient -p kl_coef=0.05 --out runs/low_kl
  workbench sweep tour -p kl_coef=0,.05,.15,.5 -p seed=0:3 --jobs 2
  workbench report runs/tour                       an offline page of what was run

exit code: 0 done, 1 a notebook failed, 2 bad input, 130 stopped (run the same command again to continue)"""
RUN_EXAMPLES = """examples:
  workbench run tour                               every stage of notebooks/recipes/tour.yaml
  workbench run tour --preset smoke --out runs/smoke
  workbench run tour -p seed=1 --out runs/seed1    for every stage that has `seed`
  workbench run tour -p 06_policy_gradient.kl_coef=0.3 --out runs/high_kl
  workbench run 06 -p steps=50 --out runs/short    by number
  workbench run my/own.ipynb
  workbench run 06 -p model=my/model -p device=cuda --processes 4 --out runs/mine    four GPUs

Values: default < recipe < preset < -p. Finished stages are skipped, a stopped one continues. Whatever OMP_NUM_THREADS
says, a run computes with one thread or the `threads` of its stage, with four after WORKBENCH_THREADS=4: other work."""
SWEEP_EXAMPLES = """examples:
  workbench sweep tour -p kl_coef=0,.05,.15,.5 -p seed=0:3 --jobs 2
  workbench sweep 06 -p algorithm=ppo,rloo,grpo -p steps=50 --out runs/algorithms
  workbench sweep tour -p 05_reward_model.pairs=250,1000,0 --preset smoke --out runs/pairs
  workbench sweep 05 -p 'labelers="ana,bo",chi'    values that hold commas, between quotes
  workbench sweep tour -p seed=0:9 --executor dask://login-node:8786

VALUES: a list 0,.05,.15 or a range 0:3 (0, 1, 2) or 0:10:5 (0, 5) is varied, a single value is the same everywhere. The
runs are every combination. Stages that do not depend on what varies run once, and folders are named after what does:
06_policy_gradient_kl_coef=0.15_seed2. What is finished is skipped; what failed stops only what needs it, is named at
the end, and is tried again by the same command. DIR/sweep.csv has a row per run.

Dask's workers need this checkout and DIR on a file system that all machines share."""
REPORT_EXAMPLES = """examples:
  workbench report runs/tour                       writes runs/tour/report/index.html
  workbench report runs/low_kl                     of a single notebook
  workbench report runs/study --only 09_kl_budget,10_overoptimization
  workbench report runs/tour --pictures pictures   also its figures as PNG (needs Chromium, see BROWSER_PATH)"""
LIST_EXAMPLES = """examples:
  workbench list                                   notebooks and recipes
  workbench list 06_policy_gradient                parameters with type, default and meaning
  workbench list tour                              a recipe's stages"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    if arguments is None and sys.getfilesystemencoding() != "utf-8":  # whatever the locale, files and texts are UTF-8
        os.execv(sys.executable, [sys.executable, "-P", "-X", "utf8", "-m", "workbench.cli", *sys.argv[1:]])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help()
        return BAD_INPUT
    options = parser().parse_args(arguments)
    try:
        if odd := [text for text in arguments if re.search("[\ud800-\udfff]", text)]:
            raise WorkbenchError(f"The argument {odd[0]!r} is not UTF-8 text: write it as such, or rename the file.")
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # of `workbench list | head`; what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except WorkbenchError as error:
        print(f"workbench: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("stopped: run the same command again to continue", file=sys.stderr)
        return STOPPED


def parser() -> argparse.ArgumentParser:
    """The four commands with their options and examples."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("workbench", description=ABOUT, epilog=EXAMPLES, formatter_class=raw)
    commands = top.add_subparsers(required=True, metavar="run | sweep | report | list")

    def add(call: Callable, about: str, examples: str) -> argparse.ArgumentParser:
        name = call.__name__.removesuffix("_command")
        command = commands.add_parser(name, help=about, epilog=examples, formatter_class=raw)
        command.set_defaults(command=call)
        return command

    run = add(run_command, "execute a notebook or recipe", RUN_EXAMPLES)
    sweep = add(sweep_command, "execute for many values", SWEEP_EXAMPLES)
    one, many = "set a parameter (STAGE.NAME=VALUE for one stage)", "vary a parameter (STAGE.NAME=VALUES in one stage)"
    for command, form, setting in ((run, "NAME=VALUE", one), (sweep, "NAME=VALUES", many)):
        named = "a path, a name such as 02_sft or tour, or a number"
        command.add_argument("target", metavar="NOTEBOOK|RECIPE", help=named)
        command.add_argument("-p", action="append", default=[], metavar=form, help=setting)
        command.add_argument("--out", default="", metavar="DIR", help="folder for results, from the repository root")
        command.add_argument("--preset", default="", help="smoke (a check in minutes) or laptop (the defaults)")
        command.add_argument("--jobs", type=int, default=0, metavar="N", help="stages to run side by side here")
    together = "processes that share the work of a notebook; a recipe says so for each stage"
    run.add_argument("--processes", type=int, default=1, metavar="N", help=together)
    where = "local (this machine) or dask://HOST:PORT (a Dask scheduler)"
    sweep.add_argument("--executor", default="local", metavar="WHERE", help=where)
    sweep.add_argument("--retries", type=int, default=0, metavar="N", help="times to try a failed stage again")

    report = add(report_command, "write an offline page", REPORT_EXAMPLES)
    report.add_argument("folder", metavar="DIR", help="folder of a recipe or of one notebook")
    report.add_argument("--only", metavar="STAGES", default="", help="names of the stages to show, with commas")
    drawn = "also write the figures of those stages, or of the first page, as PNG"
    report.add_argument("--pictures", metavar="DIR", default="", help=drawn)

    listing = add(list_command, "show what can be run", LIST_EXAMPLES)
    asked = "show its parameters or stages"
    listing.add_argument("target", nargs="?", default="", metavar="NOTEBOOK|RECIPE", help=asked)
    return top


def run_command(options: argparse.Namespace) -> int:
    """`workbench run`: check everything, execute, write the report where the recipe asks for it."""
    plan = with_jobs(read_plan(options), options.jobs)
    if plan.report:
        refuse_other_report(plan.folder)
    code = run_plan(plan)
    if code == DONE and plan.report:
        write_report(plan.folder, only=plan.shown)
    elif code == DONE:
        print(f"results: {shown(plan.folder)}")
    return code


def read_plan(options: argparse.Namespace) -> Plan:
    """Plan of the notebook or recipe that was named."""
    path = find(options.target, recipe_paths())
    given = {"assignments": options.p, "out": options.out, "preset_name": options.preset}
    if options.processes < 1:
        raise WorkbenchError(f"--processes is {options.processes}: give a whole number of at least 1.")
    if path.suffix == ".ipynb":
        return plan_notebook(path, **given, processes=options.processes)
    if options.processes > 1:
        raise WorkbenchError(f"--processes is for one notebook: write processes into the stages of {shown(path)}.")
    return plan_recipe(path, **given)


def with_jobs(plan: Plan, jobs: int) -> Plan:
    """The plan with `--jobs`, 0 for the recipe's own."""
    if jobs < 0:
        raise WorkbenchError(f"--jobs is {jobs}: give a whole number of at least 1.")
    return replace(plan, jobs=jobs or plan.jobs)


def sweep_command(options: argparse.Namespace) -> int:
    """`workbench sweep`: check everything, then run it here or on a Dask cluster."""
    if options.retries < 0:
        raise WorkbenchError(f"--retries is {options.retries}: give a whole number, 0 for none.")
    sweep = plan_sweep(options.target, options.p, out=options.out, preset_name=options.preset)
    if options.executor == "local":
        return run_sweep(replace(sweep, plan=with_jobs(sweep.plan, options.jobs)), retries=options.retries)
    if options.jobs:
        raise WorkbenchError(f"--jobs {options.jobs} is for this machine: with --executor the cluster decides.")
    with dask_executor(options.executor) as executor:
        return run_sweep(sweep, executor=executor, retries=options.retries)


def report_command(options: argparse.Namespace) -> int:
    """`workbench report`: the folder may be given from here or from the repository root."""
    here = user_path(options.folder)
    folder = here.absolute() if here.is_dir() else resolve(options.folder)
    only = names_in(options.only)
    write_report(folder, only=only)
    if options.pictures:
        from workbench.pipeline.report import write_pictures

        first = [folder / "00_tour" if (folder / "00_tour").is_dir() else folder]
        for stage in [folder / name for name in only] or first:
            print(*map(shown, write_pictures(stage / "notebook.ipynb", resolve(options.pictures))), sep="\n")
    return DONE


def write_report(folder: Path, *, only: Sequence[str]) -> None:
    """Write the report, of the stages in `only` or of all, and print where it is."""
    from workbench.pipeline import report  # seconds of imports that only this command needs

    print(f"report: {report.write_report(folder, only=only)}")


def list_command(options: argparse.Namespace) -> int:
    """`workbench list`: everything, or one notebook's parameters, or one recipe's stages."""
    if options.target:
        path = find(options.target, recipe_paths())
        lines = listed_parameters(path) if path.suffix == ".ipynb" else listed_stages(path)
    else:
        lines = [*listed_notebooks(), "", *listed_recipes()]
    print(*lines, sep="\n")
    return DONE


def listed_notebooks() -> list[str]:
    """A line or two per notebook: its name and question, and how long it takes."""
    lines = ["notebooks"]
    for notebook in map(read_notebook, notebook_paths()):
        lines += [f"  {notebook.name:24}{notebook.title}"] + [f"  {'':24}{notebook.minutes}"] * bool(notebook.minutes)
    return lines if len(lines) > 1 else ["no notebooks in notebooks/"]


def listed_recipes() -> list[str]:
    """A line per recipe: its name, title and number of stages."""
    lines = ["recipes"]
    for path in recipe_paths():
        recipe = read_recipe(path)
        title = recipe.get("title", recipe["name"])
        lines.append(f"  {path.stem:24}{title} ({len(recipe['stages'])} stages, {recipe['out']})")
    return lines if len(lines) > 1 else ["no recipes in notebooks/recipes/"]


def listed_parameters(path: Path) -> list[str]:
    """A line per parameter: name, type, default, comment."""
    notebook = read_notebook(path)
    rows = [(item.name, item.kind, repr(item.default), item.comment) for item in notebook.parameters.values()]
    return [notebook.title, *[notebook.minutes] * bool(notebook.minutes), "", *(aligned(rows) or ["no parameters"])]


def listed_stages(path: Path) -> list[str]:
    """A line per stage: its name, notebook and parameters."""
    recipe = read_recipe(path)
    rows = []
    for stage in recipe["stages"]:
        given = ", ".join(f"{name}={value}" for name, value in (stage.get("parameters") or {}).items())
        rows.append((stage["name"], stage["notebook"], given))
    return [recipe.get("title", recipe["name"]), f"into {recipe['out']}", "", *aligned(rows)]


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """A line per row, its columns padded to the widest entry."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(["", *map(str.ljust, row, widths)]).rstrip() for row in rows]


if __name__ == "__main__":
    sys.exit(main())
