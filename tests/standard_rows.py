"""Rows of a file in the columns of a schema, as a task reads them."""

from datasets import Dataset

from workbench.tasks.columns import to_standard
from workbench.tasks.sources import read_source


def load_dataset_rows(source: str, *, schema: str, columns: dict[str, str] | None = None) -> Dataset:
    found = read_source(source)
    return to_standard(found.rows, schema, source=source, columns=columns, mixed=found.mixed)
