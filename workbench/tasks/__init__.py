"""What a notebook works on: the embedded world, a file or Hub dataset, or what an earlier run saved.

All three give the same rows in the standard columns; only the world (and runs built on it) has a gold reward. Feedback
comes as training rows and held-out rows, no prompt on both sides; a count of 0 is all there is.
"""

import random
from collections.abc import Callable
from functools import cached_property

import pandas as pd
from datasets import Dataset

from workbench import WorkbenchError
from workbench.runs import Run, files
from workbench.tasks.columns import (
    STANDARD_COLUMNS,
    TIE,
    MissingColumn,
    columns_of,
    parse_columns,
    require_decided,
    split_by_prompt,
    to_standard,
    unpaired,
    without_ties,
)
from workbench.tasks.sources import Source, data_files, is_saved, read_source
from workbench.tasks.world import NOISE_PANEL, PANEL, Labeler, World, build_tokenizer

HELD_OUT_SEED = 1_000_003  # held-out world rows are the same for every training seed
FEWEST_HELD_OUT = 20  # rows kept for measuring, however few are trained on
OPENING_WORDS = 8  # of a document, for a language model to continue
ORIGIN = ("lexicon", "world_seed", "columns", "held_out")  # parameters of a run that say what its dataset means
PANELS = {"biased": PANEL, "noise": NOISE_PANEL}


def open_task(
    dataset: str, *, lexicon: str = "data/world", world_seed: int = 0, columns: str = "", held_out: float = 0.1
):
    """The task behind a notebook's `dataset` parameter.

    "world" is the embedded world of `lexicon` and `world_seed`; a run folder is what that run saved, with its world;
    anything else is a Hub id or file, `columns` naming its columns ("prompt=question") and `held_out` the share of
    prompts kept for measuring. Raises WorkbenchError where the source can not be read.
    """
    if dataset == "world":
        return WorldTask(World.load(lexicon, seed=world_seed))
    if (files.resolve(dataset) / "run.json").exists():
        return RunTask(Run.read(dataset))
    return FileTask(dataset, columns=columns, held_out=held_out)


def task_inputs(dataset: str) -> dict[str, str]:
    """Where the rows of a notebook's `dataset` parameter lie on this machine, for `Run.open(inputs=)`.

    The tables of a run, a file or a folder as {"dataset": path}; {} for the world and for a Hub id.
    """
    path = files.resolve(dataset)
    tables = path / "tables"
    if path.is_dir() and not (path / "run.json").exists() and not is_saved(path):
        data_files(path)  # a folder without rows is not read to its last byte first
    here = dataset != "world" and path.exists()
    return {"dataset": str(tables if tables.is_dir() else path)} if here else {}


class WorldTask:
    """Endless rows from the embedded world; training and held-out prompts are disjoint by construction."""

    notes: tuple[str, ...] = ()  # what to know of the data, in sentences

    def __init__(self, world: World):
        self.world = world
        self.gold: Callable[..., list[float]] | None = world.gold

    def documents(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` training documents and a thirtieth of that held out, columns `text` and `sort`."""
        _require_count("documents", count, fewest=1)
        train = self.world.pretraining_rows(count, random.Random(seed))
        test = self.world.pretraining_rows(max(FEWEST_HELD_OUT, count // 30), random.Random(HELD_OUT_SEED))
        return Dataset.from_list(train), Dataset.from_list(test)

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` demonstrations in the writers' house style and, of held-out prompts, a tenth of that."""
        _require_count("demonstrations", count, fewest=1)
        held_out = max(FEWEST_HELD_OUT, count // 10)
        train = self.world.demonstrations(count, random.Random(seed))
        test = self.world.demonstrations(held_out, random.Random(HELD_OUT_SEED), split="test")
        return Dataset.from_list(train), Dataset.from_list(test)

    def preferences(self, count: int, *, ties: bool = False) -> tuple[Dataset, Dataset]:
        """The world holds no feedback: it is made by notebook 03."""
        raise _made_by_labelers("comparisons")

    def labelled(self, count: int) -> tuple[Dataset, Dataset]:
        """The world holds no feedback: it is made by notebook 03."""
        raise _made_by_labelers("labels")

    def ratings(self, count: int) -> tuple[Dataset, Dataset]:
        """The world holds no feedback: it is made by notebook 03."""
        raise _made_by_labelers("ratings", kind="ratings")

    def rankings(self, count: int) -> tuple[Dataset, Dataset]:
        """The world holds no feedback: it is made by notebook 03."""
        raise _made_by_labelers("rankings", kind="rankings")

    def steps(self, count: int) -> tuple[Dataset, Dataset]:
        """The world holds no feedback: it is made by notebook 03."""
        raise _made_by_labelers("judged steps", kind="steps")

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """`count` prompts of the "train" or "test" split."""
        _require_count("prompts", count, fewest=1)
        return Dataset.from_list(self.world.prompts(count, random.Random(seed), split=split))

    def openings(self, count: int, seed: int) -> Dataset:
        """What a language model is asked to continue when it is measured: held-out prompts."""
        return self.prompts(count, seed, split="test")

    def tokenizer(self):
        """One token per word of the world."""
        return build_tokenizer(self.world)

    def labelers(self, panel: str) -> tuple[Labeler, ...]:
        """The simulated labelers of `panel`, "biased" or "noise"."""
        if panel not in PANELS:
            raise WorkbenchError(f"There is no panel {panel!r}: choose one of {', '.join(PANELS)}.")
        return PANELS[panel]


class FileTask:
    """Rows of a file, folder or Hub dataset. A prompt's side of the split depends on the data alone, not on a seed."""

    gold, world = None, None  # nobody knows the true reward of real data

    def __init__(self, source: str, *, columns: str, held_out: float):
        self.source, self.columns, self.held_out = source, parse_columns(columns), held_out

    def documents(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` training texts drawn with `seed` (0 = all) and held-out ones, column `text`."""
        rows = self._load("text").select_columns(["text"]).rename_column("text", "prompt")  # equal ones on one side
        sides = self._drawn(*split_by_prompt(rows, held_out=self.held_out, seed=0), count, seed=seed)
        return tuple(side.rename_column("prompt", "text") for side in sides)

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` demonstrations drawn with `seed` (0 = all) and held-out ones; of comparisons, the chosen side."""
        sides = self._sides("demonstrations", "preferences")
        if "completion" not in sides[0].column_names[:2]:
            others = {"rejected", "completion"}.intersection(sides[0].column_names)
            sides = [side.remove_columns(list(others)).rename_column("chosen", "completion") for side in sides]
        return self._drawn(*sides, count, seed=seed)

    def preferences(self, count: int, *, ties: bool = False) -> tuple[Dataset, Dataset]:
        """`count` comparisons and held-out ones; ties (preference .5) only among the former, and only if asked for."""
        train, test = self._sides("preferences")
        train = train if ties else require_decided(without_ties(train))
        return self._drawn(train, without_ties(test), count, seed=0)

    def labelled(self, count: int) -> tuple[Dataset, Dataset]:
        """`count` labelled completions and held-out ones; of comparisons, the chosen are True, the rejected False."""
        train, test = self._sides("unpaired", "preferences")
        if "completion" not in train.column_names[:2]:  # what a schema asks for comes first
            train, test = unpaired(train), unpaired(test)
        return self._drawn(train, test, count, seed=0)

    def ratings(self, count: int) -> tuple[Dataset, Dataset]:
        """`count` rated completions and held-out ones."""
        return self._drawn(*self._sides("ratings"), count, seed=0)

    def rankings(self, count: int) -> tuple[Dataset, Dataset]:
        """`count` rankings and held-out ones."""
        return self._drawn(*self._sides("rankings"), count, seed=0)

    def steps(self, count: int) -> tuple[Dataset, Dataset]:
        """`count` completions in judged steps and held-out ones."""
        return self._drawn(*self._sides("stepwise"), count, seed=0)

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """Distinct prompts of one side of the split, shuffled; at most `count`. What only a reward reads stays."""
        train, test = self._sides(*(schema for schema in STANDARD_COLUMNS if schema != "text"))
        side = train if split == "train" else test
        answers = {"finished"}.union(*(columns_of(schema) for schema in STANDARD_COLUMNS)) - {"prompt"}
        side = side.remove_columns([name for name in side.column_names if name in answers])
        return _drawn(_distinct(side), count, seed=seed)

    def openings(self, count: int, seed: int) -> Dataset:
        """What a language model is asked to continue when it is measured: the first words of held-out texts."""
        texts = _drawn(self.documents(0, 0)[1], count, seed=seed)["text"][:]
        return Dataset.from_dict({"prompt": [" ".join(text.split()[:OPENING_WORDS]) for text in texts if text.strip()]})

    def tokenizer(self):
        """Nobody knows which tokens suit real text: WorkbenchError asks for a tokenizer."""
        raise WorkbenchError(
            f"No tokenizer was given for the texts of {self.source!r}: set tokenizer to a folder or Hub id."
        )

    def labelers(self, panel: str) -> tuple[Labeler, ...]:
        """Only the world can be judged by a program: WorkbenchError says what to do with real data."""
        raise WorkbenchError(
            f"Simulated labelers know only the embedded world and can not judge {self.source!r}: give comparisons that "
            "people made (columns prompt, chosen, rejected) to 05_reward_model, or have people label samples first."
        )

    @cached_property
    def _found(self) -> Source:
        """The source, which is read once."""
        return read_source(self.source)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which of several splits is read."""
        return (self._found.note,) if self._found.note else ()

    def _sides(self, *schemas: str) -> tuple[Dataset, Dataset]:
        """All rows in the first schema that they fit, those for training and those held out."""
        return split_by_prompt(self._load(*schemas), held_out=self.held_out, seed=0)

    def _drawn(self, train: Dataset, test: Dataset, count: int, *, seed: int) -> tuple[Dataset, Dataset]:
        """At most `count` training rows (0 = all), and held-out rows in the same proportion."""
        kept = max(FEWEST_HELD_OUT, round(count * self.held_out / (1 - self.held_out))) if count else 0
        return _drawn(train, count, seed=seed), _drawn(test, kept, seed=0)

    def _load(self, *schemas: str) -> Dataset:
        """All rows in the first schema that they fit; the error is that of the first whose columns they have."""
        named = [schema for schema in schemas if set(self.columns) <= set(columns_of(schema))]
        errors = []
        for schema in named or schemas:
            try:
                return to_standard(
                    self._found.rows, schema, source=self.source, columns=self.columns, mixed=self._found.mixed
                )
            except WorkbenchError as error:
                errors.append(error)
        raise next((error for error in errors if not isinstance(error, MissingColumn)), errors[0])


def _made_by_labelers(what: str, *, kind: str = "") -> WorkbenchError:
    """Why the world has no feedback of some kind, and which run does."""
    asked = f' with kinds="pairs,{kind}"' if kind else ""
    return WorkbenchError(
        f'dataset is "world", which holds no {what}: run 03_preferences{asked} and give its run folder.'
    )


def _drawn(rows: Dataset, count: int, *, seed: int) -> Dataset:
    """At most `count` rows (0 = all) in an order that `seed` decides."""
    _require_count("rows", count, fewest=0)
    shuffled = rows.shuffle(seed=seed)
    return shuffled.select(range(min(count, len(rows)) if count else len(rows)))


def _first(rows: Dataset, count: int) -> Dataset:
    """The first `count` rows, 0 = all."""
    _require_count("rows", count, fewest=0)
    return rows.select(range(min(count, len(rows)) if count else len(rows)))


def _require_count(noun: str, count: int, *, fewest: int) -> None:
    """Refuse a number of rows that means nothing: 0 is all of a file, but the world has no end."""
    if count < fewest:
        end = "" if fewest == 0 else " (the world has no end, so 0 can not mean all)"
        raise WorkbenchError(f"The number of {noun} asked for is {count}: give at least {fewest}{end}.")


def _distinct(rows: Dataset) -> Dataset:
    """The first row of each prompt."""
    first = {str(prompt): row for row, prompt in reversed(list(enumerate(rows["prompt"][:])))}
    return rows.select(sorted(first.values()))


class RunTask:
    """What an earlier run saved, on the world or data that it was given."""

    notes: tuple[str, ...] = ()

    def __init__(self, run: Run):
        self.run = run
        settings = {name: run.parameters[name] for name in ORIGIN if name in run.parameters}
        self.origin = open_task(run.parameters.get("dataset", "world"), **settings)
        self.gold, self.world = self.origin.gold, self.origin.world

    def documents(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """Those of the run's own dataset."""
        return self.origin.documents(count, seed)

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """Those of the run's own dataset."""
        return self.origin.demonstrations(count, seed)

    def preferences(self, count: int, *, ties: bool = False) -> tuple[Dataset, Dataset]:
        """The first `count` of the run's comparisons, with the ties among them if asked for, and the held-out ones."""
        train, test = self._tables("preferences", "preferences")
        return _first(self._with_ties(train) if ties else train, count), test

    def labelled(self, count: int) -> tuple[Dataset, Dataset]:
        """The run's comparisons, unpaired: the chosen are True and the rejected False."""
        train, test = self._tables("preferences", "preferences")
        return _first(unpaired(train), count), unpaired(test)

    def ratings(self, count: int) -> tuple[Dataset, Dataset]:
        """The first `count` of the run's ratings, and the held-out ones."""
        train, test = self._tables("ratings", "ratings")
        return _first(train, count), test

    def rankings(self, count: int) -> tuple[Dataset, Dataset]:
        """The first `count` of the run's rankings, and the held-out ones."""
        train, test = self._tables("rankings", "rankings")
        return _first(train, count), test

    def steps(self, count: int) -> tuple[Dataset, Dataset]:
        """The first `count` of the run's completions in judged steps, and the held-out ones."""
        train, test = self._tables("steps", "stepwise")
        return _first(train, count), test

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """Those of the run's own dataset."""
        return self.origin.prompts(count, seed, split=split)

    def openings(self, count: int, seed: int) -> Dataset:
        """Those of the run's own dataset."""
        return self.origin.openings(count, seed)

    def tokenizer(self):
        """That of the run's own dataset."""
        return self.origin.tokenizer()

    def labelers(self, panel: str) -> tuple[Labeler, ...]:
        """Those of the run's own dataset."""
        return self.origin.labelers(panel)

    def _tables(self, name: str, schema: str) -> tuple[Dataset, Dataset]:
        """A table of feedback and its held-out twin; WorkbenchError says how a run comes to have them."""
        if name != "preferences" and not self.run.path(f"tables/{name}.jsonl").exists():
            raise WorkbenchError(
                f"{files.shown(self.run.dir)} has no table {name!r}: "
                f'run 03_preferences with kinds="pairs,{name}" and give its run folder.'
            )
        return tuple(self._standard(table, self.run.table(table), schema) for table in (name, f"held_out_{name}"))

    def _with_ties(self, pairs: Dataset) -> Dataset:
        """The comparisons (preference 1) and, where they were judged among them, the ties (preference .5)."""
        decided, kept = pairs.to_pandas().assign(preference=1.0), self.run.path("tables/left_out.jsonl").exists()
        left_out = self.run.table("left_out") if kept else pd.DataFrame()
        if left_out.empty:
            return self._standard("preferences", decided, "preferences")
        ties = left_out[left_out["reason"] == "tie"]
        sides = pd.DataFrame(ties["completions"].to_list(), columns=["chosen", "rejected"], index=ties.index)
        ties = ties.drop(columns=["completions", "reason"]).join(sides).assign(preference=TIE)
        both = pd.concat([decided, ties]).sort_values("item_id", kind="stable")
        return self._standard("left_out", both, "preferences")

    def _standard(self, table: str, frame: pd.DataFrame, schema: str) -> Dataset:
        rows = Dataset.from_pandas(frame, preserve_index=False)
        return to_standard(rows, schema, source=f"{files.shown(self.run.dir)}/tables/{table}.jsonl")
