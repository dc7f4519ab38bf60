"""What a notebook works on: the embedded world, a file or Hub dataset, or what an earlier run saved.

All three give the same rows in the standard columns; only the world (and runs built on it) has a gold reward.
"""

import random
from collections.abc import Callable, Mapping
from functools import cached_property

import pandas as pd
from datasets import Dataset

from workbench import WorkbenchError
from workbench.runs import NOTHING, Run, files, names_in
from workbench.runs.reward_names import weighted
from workbench.tasks.columns import MissingColumn, parse_columns, split_by_prompt, to_standard
from workbench.tasks.schemas import SCHEMAS, TIE, require_decided, schema_named, without_ties
from workbench.tasks.sources import Source, data_files, is_saved, read_source
from workbench.tasks.world import NOISE_PANEL, PANEL, Labeler, World, build_tokenizer, of_kinds, verifiers

HELD_OUT_SEED = 1_000_003  # held-out world rows are the same for every training seed
FEWEST_HELD_OUT = 20  # rows kept for measuring, however few are trained on
OPENING_WORDS = 8  # of a document, for a language model to continue
ORIGIN = ("lexicon", "world_seed", "columns", "held_out")  # parameters of a run that say what its dataset means
PANELS = {"biased": PANEL, "noise": NOISE_PANEL}

Reward = Callable[..., list[float]]
Sides = tuple[Dataset, Dataset]  # rows for training and rows held out, no prompt on both sides


def open_task(
    dataset: str, *, lexicon: str = "data/world", world_seed: int = 0, columns: str = "", held_out: float = 0.1
) -> "Task":
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


class Task:
    """Prompts and rows; unless something else is said, nobody knows their true reward, tokens or labelers."""

    source = ""
    notes: tuple[str, ...] = ()  # what to know of the data, in sentences
    world: World | None = None
    reward: Reward | None = None  # the true one: the gold of the world
    rewards: Mapping[str, Reward] = NOTHING  # what it can check, by names such as "task:sums"
    kinds: Mapping[str, Callable[..., Reward]] = NOTHING  # of its prompts: what makes a reward one of each kind

    def prompts(self, count: int, seed: int, *, split: str, schema: str = "prompts", kinds: str = "") -> Dataset:
        """At most `count` prompts (0 = all) of the "train" or "test" split; of "text" its openings, to be continued.

        `kinds` lists those that are wanted, "math*3, qa" with weights; "" takes all as they come.
        """
        raise NotImplementedError

    def rows(self, schema: str, count: int, *, seed: int = 0, ties: bool = False) -> Sides:
        """`count` training rows (0 = all) in the columns of `SCHEMAS[schema]`, drawn with `seed`, and held-out rows.

        Ties (preference .5) come only where they are asked for, and only among the training rows. WorkbenchError says
        what the data lack.
        """
        raise NotImplementedError

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


class WorldTask(Task):
    """Endless rows from the embedded world; training and held-out prompts are disjoint by construction."""

    def __init__(self, world: World):
        self.world, self.reward = world, world.gold
        self.rewards = {**verifiers(world), "task:gold": world.gold}
        self.kinds = of_kinds(world)

    def prompts(self, count: int, seed: int, *, split: str, schema: str = "prompts", kinds: str = "") -> Dataset:
        """`count` prompts, whatever they are for."""
        _require_count("prompts", count, fewest=1)
        rng = random.Random(seed)
        if not (named := names_in(kinds)):
            return Dataset.from_list(self.world.prompts(count, rng, split=split))
        names, weights = zip(*map(weighted, named), strict=True)
        if not 0 < min(weights) <= max(weights) < float("inf"):
            raise WorkbenchError(f'kinds is {kinds!r}: give each kind a weight above 0, as in "math*3, qa".')
        drawn = rng.choices(names, weights, k=count)
        return Dataset.from_list([self.world.prompts(1, rng, split=split, kind=kind)[0] for kind in drawn])

    def rows(self, schema: str, count: int, *, seed: int = 0, ties: bool = False) -> Sides:
        """Documents and a thirtieth of that held out, or demonstrations in the writers' house style and a tenth.

        The world holds no feedback: it is made by notebook 03.
        """
        noun, table = schema_named(schema).noun, SCHEMAS[schema].table
        if table:
            asked = "" if table == "preferences" else f' with kinds="pairs,{table}"'
            raise WorkbenchError(
                f'dataset is "world", which holds no {noun}: run 03_preferences{asked} and give its run folder.'
            )
        _require_count(noun, count, fewest=1)
        rng, other, held_out = random.Random(seed), random.Random(HELD_OUT_SEED), max(FEWEST_HELD_OUT, count // 10)
        if schema == "text":
            held_out = max(FEWEST_HELD_OUT, count // 30)
            train, test = self.world.pretraining_rows(count, rng), self.world.pretraining_rows(held_out, other)
        else:
            draw = self.world.prompts if schema == "prompts" else self.world.demonstrations
            train, test = draw(count, rng), draw(held_out, other, split="test")
        return Dataset.from_list(train), Dataset.from_list(test)

    def tokenizer(self):
        """One token per word of the world."""
        return build_tokenizer(self.world)

    def labelers(self, panel: str) -> tuple[Labeler, ...]:
        """The simulated labelers of `panel`, "biased" or "noise"."""
        if panel not in PANELS:
            raise WorkbenchError(f"There is no panel {panel!r}: choose one of {', '.join(PANELS)}.")
        return PANELS[panel]


class FileTask(Task):
    """Rows of a file, folder or Hub dataset. A prompt's side of the split depends on the data alone, not on a seed."""

    def __init__(self, source: str, *, columns: str, held_out: float):
        self.source, self.columns, self.held_out = source, parse_columns(columns), held_out

    def prompts(self, count: int, seed: int, *, split: str, schema: str = "prompts", kinds: str = "") -> Dataset:
        """Distinct prompts, shuffled, with what only a reward reads; of texts the first words of each."""
        if kinds.strip():
            raise WorkbenchError(
                f"kinds is {kinds!r}, but only the embedded world draws prompts by kind: leave it empty, and give a "
                f"file of those prompts of {self.source!r} that are wanted."
            )
        if schema == "text":
            side = _first(self.rows("text", 0)[split != "train"].shuffle(seed=seed), count)["text"][:]
            return Dataset.from_dict(
                {"prompt": [" ".join(text.split()[:OPENING_WORDS]) for text in side if text.strip()]}
            )
        side = self._sides(*(name for name in SCHEMAS if name != "text"))[1 if split == "train" else 2]
        answers = {"finished"}.union(*(each.known for each in SCHEMAS.values())) - {"prompt"}
        side = side.remove_columns([name for name in side.column_names if name in answers])
        first = {str(prompt): row for row, prompt in reversed(list(enumerate(side["prompt"][:])))}
        return _first(side.select(sorted(first.values())).shuffle(seed=seed), count)

    def rows(self, schema: str, count: int, *, seed: int = 0, ties: bool = False) -> Sides:
        """The rows in the schema, or made from one that it can be made from; held out in the same proportion."""
        found, train, test = self._sides(schema, *schema_named(schema).made_from)
        if found != schema:
            train, test = map(SCHEMAS[schema].made_from[found], (train, test))
        elif schema == "preferences":
            train, test = train if ties else require_decided(train), without_ties(test)
        kept = max(FEWEST_HELD_OUT, round(count * self.held_out / (1 - self.held_out))) if count else 0
        return _first(train.shuffle(seed=seed), count), _first(test.shuffle(seed=0), kept)

    @cached_property
    def _found(self) -> Source:
        """The source, which is read once."""
        return read_source(self.source)

    @property
    def notes(self) -> tuple[str, ...]:
        """Which of several splits is read."""
        return (self._found.note,) if self._found.note else ()

    def _sides(self, *schemas: str) -> tuple[str, Dataset, Dataset]:
        """The first schema that all rows fit, those for training and those held out."""
        found, rows = self._load(schemas)
        rows = rows.select_columns(["text"]) if found == "text" else rows
        return found, *split_by_prompt(rows, held_out=self.held_out, seed=0, column=SCHEMAS[found].columns[0])

    def _load(self, schemas: tuple[str, ...]) -> tuple[str, Dataset]:
        """The first schema that all rows fit, and the rows; the error is that of the first whose columns they have."""
        named = [schema for schema in schemas if set(self.columns) <= set(SCHEMAS[schema].known)]
        errors = []
        for schema in named or schemas:
            rows, mixed = self._found.rows, self._found.mixed
            try:
                return schema, to_standard(rows, schema, source=self.source, columns=self.columns, mixed=mixed)
            except WorkbenchError as error:
                errors.append(error)
        raise next((error for error in errors if not isinstance(error, MissingColumn)), errors[0])


class RunTask(Task):
    """What an earlier run saved: its feedback, and for the rest the world or data that it was given."""

    def __init__(self, run: Run):
        settings = {name: run.parameters[name] for name in ORIGIN if name in run.parameters}
        self.run, self.origin = run, open_task(run.parameters.get("dataset", "world"), **settings)
        self.reward, self.world, self.kinds = self.origin.reward, self.origin.world, self.origin.kinds
        self.tokenizer, self.labelers, self.rewards = self.origin.tokenizer, self.origin.labelers, self.origin.rewards

    def prompts(self, count: int, seed: int, *, split: str, schema: str = "prompts", kinds: str = "") -> Dataset:
        """Those of the run's dataset, of the kinds whose answers were judged where no others are asked for."""
        kinds = kinds or self.run.parameters.get("prompt_kinds", "")
        return self.origin.prompts(count, seed, split=split, schema=schema, kinds=kinds)

    def rows(self, schema: str, count: int, *, seed: int = 0, ties: bool = False) -> Sides:
        """The first `count` rows of the feedback that was saved (0 = all); texts are those of the run's dataset.

        Demonstrations are the samples that a run of 07 chose, where it is one.
        """
        wanted = schema_named(schema)
        if schema == "demonstrations" and self.run.path("tables/demonstrations.jsonl").exists():  # chosen samples
            chosen, held = self.run.table(schema), self.run.parameters.get("split") == "test"
            if held or chosen.empty:
                why = 'answered held-out prompts, on which everything is measured: run 07_best_of_n with split="train"'
                none = "kept no answer: take a policy that gives some that pass, or more evaluation_prompts"
                raise WorkbenchError(f"{files.shown(self.run.dir)} {why if held else none}.")
            train, test = split_by_prompt(self._standard(schema, chosen, schema), held_out=0.1, seed=0)
            return _first(train.shuffle(seed=seed), count), test
        if not wanted.table:
            return self.origin.rows(schema, count, seed=seed)
        found = wanted.table if wanted.table in wanted.made_from else schema
        train, test = self._tables(wanted.table, found)
        train = self._with_ties(train) if ties and schema == "preferences" else train
        if found != schema:
            train, test = map(wanted.made_from[found], (train, test))
        return _first(train, count), test

    def _tables(self, name: str, schema: str) -> Sides:
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


def mixed(rows: Dataset, others: Dataset, *, share: float, columns: tuple[str, ...]) -> Dataset:
    """All of `rows` and as many of `others` as make up `share` of both; WorkbenchError where those are too few."""
    wanted = round(len(rows) * share / (1 - share)) if 0 <= share < 1 else -1
    if not 0 <= wanted <= len(others):
        raise WorkbenchError(
            f"mixed_share is {share}, but there are {len(rows)} rows and {len(others)} to mix with: give a share from "
            f"0 to {len(others) / (len(rows) + len(others)):.2f}."
        )
    return Dataset.from_dict({name: rows[name][:] + others[name][:wanted] for name in columns})


def _first(rows: Dataset, count: int) -> Dataset:
    """The first `count` rows, 0 = all."""
    _require_count("rows", count, fewest=0)
    return rows.select(range(min(count, len(rows)) if count else len(rows)))


def _require_count(noun: str, count: int, *, fewest: int) -> None:
    """Refuse a number of rows that means nothing: 0 is all of a file, but the world has no end."""
    if count < fewest:
        end = "" if fewest == 0 else " (the world has no end, so 0 can not mean all)"
        raise WorkbenchError(f"The number of {noun} asked for is {count}: give at least {fewest}{end}.")
