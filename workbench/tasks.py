"""What a notebook works on: the embedded world, a file or Hub dataset, or what an earlier run saved.

All three give the same rows in the standard columns; only the world (and runs built on it) has a gold reward.
"""

import random
from collections.abc import Callable

from datasets import Dataset

from workbench import files
from workbench.datasets import load_dataset_rows, parse_columns, split_by_prompt, to_standard
from workbench.errors import WorkbenchError
from workbench.runs import Run
from workbench.world import World

HELD_OUT_SEED = 1_000_003  # held-out world rows are the same for every training seed


def open_task(dataset: str, *, lexicon: str = "data/world", world_seed: int = 0, columns: str = "", held_out: float = 0.1):
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


class WorldTask:
    """Endless rows from the embedded world; training and held-out prompts are disjoint by construction."""

    def __init__(self, world: World):
        self.world = world
        self.gold: Callable[..., list[float]] | None = world.gold

    def documents(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` training documents and a thirtieth of that held out, column `text`."""
        train = self.world.pretraining_documents(count, random.Random(seed))
        test = self.world.pretraining_documents(max(20, count // 30), random.Random(HELD_OUT_SEED))
        return Dataset.from_dict({"text": train}), Dataset.from_dict({"text": test})

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """`count` demonstrations in the writers' house style and a tenth of that held out."""
        train = self.world.demonstrations(count, random.Random(seed))
        test = self.world.demonstrations(max(20, count // 10), random.Random(HELD_OUT_SEED))
        return Dataset.from_list(train), Dataset.from_list(test)

    def preferences(self, count: int) -> tuple[Dataset, Dataset]:
        """The world holds no comparisons: they are made by notebook 03."""
        raise WorkbenchError('dataset is "world", which holds no comparisons: run 03_preferences and give its run folder.')

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """`count` prompts of the "train" or "test" split."""
        return Dataset.from_list(self.world.prompts(count, random.Random(seed), split=split))


class FileTask:
    """Rows of a file, folder or Hub dataset, split by prompt."""

    gold = None  # nobody knows the true reward of real data

    def __init__(self, source: str, *, columns: str, held_out: float):
        self.source, self.columns, self.held_out = source, parse_columns(columns), held_out

    def documents(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """The first `count` texts (0 = all), a share of them held out."""
        rows = load_dataset_rows(self.source, schema="text", limit=count, columns=self.columns)
        parts = rows.train_test_split(test_size=self.held_out, seed=seed)
        return parts["train"], parts["test"]

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """Demonstrations; where the data are comparisons, the chosen completions."""
        return split_by_prompt(self._demonstrations(count), held_out=self.held_out, seed=seed)

    def preferences(self, count: int) -> tuple[Dataset, Dataset]:
        """The first `count` comparisons (0 = all), a share of the prompts held out."""
        rows = load_dataset_rows(self.source, schema="preferences", limit=count, columns=self.columns)
        return split_by_prompt(rows, held_out=self.held_out, seed=0)

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """Distinct prompts of one side of the split, shuffled; at most `count`."""
        rows = load_dataset_rows(self.source, schema="prompts", columns=self.columns).select_columns(["prompt"])
        train, test = split_by_prompt(rows, held_out=self.held_out, seed=0)
        part = (train if split == "train" else test).shuffle(seed=seed)
        return part.select(range(min(count, len(part))))

    def _demonstrations(self, count: int) -> Dataset:
        try:
            return load_dataset_rows(self.source, schema="demonstrations", limit=count, columns=self.columns)
        except WorkbenchError as no_completions:
            try:
                rows = load_dataset_rows(self.source, schema="preferences", limit=count, columns=self.columns)
            except WorkbenchError:
                raise no_completions from None
            return rows.rename_column("chosen", "completion").remove_columns("rejected")


class RunTask:
    """What an earlier run saved, on the world or data that it was given."""

    def __init__(self, run: Run):
        self.run = run
        settings = {name: run.parameters[name] for name in ("lexicon", "world_seed", "columns") if name in run.parameters}
        self.origin = open_task(run.parameters.get("dataset", "world"), **settings)
        self.gold = self.origin.gold

    def documents(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """Those of the run's own dataset."""
        return self.origin.documents(count, seed)

    def demonstrations(self, count: int, seed: int) -> tuple[Dataset, Dataset]:
        """Those of the run's own dataset."""
        return self.origin.demonstrations(count, seed)

    def preferences(self, count: int) -> tuple[Dataset, Dataset]:
        """The run's tables `preferences` (the first `count`, 0 = all) and `held_out_preferences`."""
        train, test = self._table("preferences"), self._table("held_out_preferences")
        return train.select(range(min(count, len(train)) if count else len(train))), test

    def prompts(self, count: int, seed: int, *, split: str) -> Dataset:
        """Those of the run's own dataset."""
        return self.origin.prompts(count, seed, split=split)

    def _table(self, name: str) -> Dataset:
        rows = Dataset.from_pandas(self.run.table(name), preserve_index=False)
        return to_standard(rows, "preferences", source=f"{files.shown(self.run.dir)}/tables/{name}.jsonl")
