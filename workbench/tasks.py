"""What a notebook works on: the embedded world, a file or Hub dataset, or what an earlier run saved.

All three give the same rows in the standard columns; only the world (and runs built on it) has a gold reward.
"""

import random
from collections.abc import Callable

from datasets import Dataset

from workbench import files
from workbench.datasets import STANDARD_COLUMNS, load_dataset_rows, parse_columns, split_by_prompt, to_standard
from workbench.errors import WorkbenchError
from workbench.runs import Run
from workbench.world import NOISE_PANEL, PANEL, Labeler, World, build_tokenizer

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
    here = dataset != "world" and path.exists()
    return {"dataset": str(tables if tables.is_dir() else path)} if here else {}


class WorldTask:
    """Endless rows from the embedded world; training and held-out prompts are disjoint by construction."""

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

    def preferences(self, count: int) -> tuple[Dataset, Dataset]:
        """The world holds no comparisons: they are made by notebook 03."""
        raise WorkbenchError(
            'dataset is "world", which holds no comparisons: run 03_preferences and give its run folder.'
        )

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
        rows = self._load("text").rename_column("text", "prompt")  # equal texts are kept on one side, too
        return tuple(part.rename_column("prompt", "text") for part in self._split(rows, count, seed=seed))

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` demonstrations drawn with `seed` (0 = all) and held-out ones; of comparisons, the chosen side."""
        rows = self._load("demonstrations", "preferences")
        if "completion" not in rows.column_names:
            rows = rows.rename_column("chosen", "completion").remove_columns("rejected")
        return self._split(rows, count, seed=seed)

    def preferences(self, count: int) -> tuple[Dataset, Dataset]:
        """`count` comparisons (0 = all) and held-out ones."""
        return self._split(self._load("preferences"), count, seed=0)

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """Distinct prompts of one side of the split, shuffled; at most `count`."""
        rows = self._load("prompts", "demonstrations", "preferences").select_columns(["prompt"])
        train, test = split_by_prompt(rows, held_out=self.held_out, seed=0)
        return _drawn(_distinct(train if split == "train" else test), count, seed=seed)

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

    def _split(self, rows: Dataset, count: int, *, seed: int) -> tuple[Dataset, Dataset]:
        """At most `count` training rows (0 = all), and held-out rows in the same proportion."""
        train, test = split_by_prompt(rows, held_out=self.held_out, seed=0)
        kept = max(FEWEST_HELD_OUT, round(count * self.held_out / (1 - self.held_out))) if count else 0
        return _drawn(train, count, seed=seed), _drawn(test, kept, seed=0)

    def _load(self, *schemas: str) -> Dataset:
        """All rows in the columns of the first schema that they fit; the error is that of the first."""
        named = [schema for schema in schemas if set(self.columns) <= {*STANDARD_COLUMNS[schema], "margin"}]
        errors = []
        for schema in named or schemas:
            try:
                return load_dataset_rows(self.source, schema=schema, columns=self.columns)
            except WorkbenchError as error:
                errors.append(error)
        raise errors[0]


def _drawn(rows: Dataset, count: int, *, seed: int) -> Dataset:
    """At most `count` rows (0 = all) in an order that `seed` decides."""
    _require_count("rows", count, fewest=0)
    shuffled = rows.shuffle(seed=seed)
    return shuffled.select(range(min(count, len(rows)) if count else len(rows)))


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

    def preferences(self, count: int) -> tuple[Dataset, Dataset]:
        """The run's tables `preferences` (the first `count`, 0 = all) and `held_out_preferences`."""
        _require_count("pairs", count, fewest=0)
        train, test = self._table("preferences"), self._table("held_out_preferences")
        return train.select(range(min(count, len(train)) if count else len(train))), test

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

    def _table(self, name: str) -> Dataset:
        rows = Dataset.from_pandas(self.run.table(name), preserve_index=False)
        return to_standard(rows, "preferences", source=f"{files.shown(self.run.dir)}/tables/{name}.jsonl")
