"""Notebooks as files: stripped, small, and alike enough that a reader of one finds everything in the next."""

import ast
import io
import json
import re
import subprocess
import tokenize
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest

from workbench import tasks
from workbench.analysis import ensembles
from workbench.feedback import session
from workbench.models import computing, load, merging
from workbench.pipeline.clean_notebook import cleaned
from workbench.pipeline.notebooks import read_notebook
from workbench.pipeline.recipes import SOURCES
from workbench.runs import progress
from workbench.studies.iterated import rounds
from workbench.trainers import (
    algorithms,
    direct_alignment,
    evaluation,
    imitation,
    language_model,
    policy_gradient_config,
    reward_model,
)

FOLDER = Path(__file__).parent.parent / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
MAXIMUM_CODE_CELLS = 20  # 06 shows PPO whole in six of them
MAXIMUM_CELL_LINES = 15
MAXIMUM_PARAMETERS = 48  # a list of settings reads faster than it looks, so it may be longer than code
MAXIMUM_DEFINITION_LINES = 5
SCALARS = {"str": str, "int": int, "float": float, "bool": bool}
# What running or widgets leave in the metadata of a notebook or cell.
LEFTOVERS = {"papermill", "widgets", "execution", "ExecuteTime"}


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.fixture
def notebook(path):
    return nbformat.read(path, as_version=nbformat.NO_CONVERT)


def in_git(path) -> str:
    """The notebook as git has it: the file may hold outputs of who works with it; without git, the file."""
    asked = subprocess.run(["git", "show", f":./{path.name}"], cwd=path.parent, capture_output=True)
    return path.read_text() if asked.returncode else asked.stdout.decode()


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameter_cells(notebook):
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def commented_lines(source):
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def test_there_are_notebooks():
    assert PATHS, f"{FOLDER} holds no notebook"


def test_the_notebook_is_valid_in_the_format_whose_cells_have_ids(path, notebook):
    assert (notebook.nbformat, notebook.nbformat_minor) >= (4, 5)
    nbformat.validate(notebook)
    # From the file: reading through nbformat invents missing ids and repairs repeated ones.
    ids = [cell.get("id") for cell in json.loads(path.read_text())["cells"]]
    assert all(ids)
    assert len(set(ids)) == len(ids)


def test_outputs_and_traces_of_running_are_stripped(path):
    notebook = nbformat.reads(in_git(path), as_version=nbformat.NO_CONVERT)
    for index, cell in enumerate(code_cells(notebook)):
        assert not cell.outputs, f"code cell {index} has outputs: clear them before committing"
        assert cell.execution_count is None, f"code cell {index} has an execution count"
    for metadata in (notebook.metadata, *(cell.metadata for cell in notebook.cells)):
        assert not LEFTOVERS & set(metadata)


def test_the_notebook_is_laid_out_as_the_filter_of_git_leaves_it(path):
    assert cleaned(in_git(path)) == in_git(path)


def test_any_jupyter_finds_the_kernel(notebook):
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.kernelspec.language == "python"


def test_the_first_cell_asks_the_question(notebook):
    first = notebook.cells[0]
    assert first.cell_type == "markdown"
    title = first.source.splitlines()[0]
    assert title.startswith("# ")
    assert title.endswith("?")


def test_the_list_says_how_long_each_notebook_takes(path, notebook):
    assert read_notebook(path).minutes in notebook.cells[0].source.replace("*", "").replace("`", "").splitlines()
    assert read_notebook(path).minutes.startswith(("About", "Less than", "A few seconds"))


CONFIGS = (policy_gradient_config.PolicyGradientConfig, language_model.LanguageModelConfig, imitation.ImitationConfig)
CONFIGS += (reward_model.RewardModelConfig, direct_alignment.DirectAlignmentConfig)
CHECKED = {each.name for config in CONFIGS for each in fields(config)}
CHECKED |= {"max_prompt_length", "evaluation_prompts", "training_prompts", "measured_prompts"}  # by sampling, the task
CHECKED |= {"documents", "demonstrations", "held_out_prompts", "row_length", "context"}  # by the task, or the model
CHECKED |= {"rounds", "pairs", "steps_per_round", "completions_per_prompt", "label_steps", "choices", "texts"}


def test_a_count_of_nothing_is_refused_at_the_start_or_by_what_takes_it(path, notebook):
    """A new parameter that counts is checked where the notebook opens its stage, or named here."""
    source = "\n".join(cell.source for cell in code_cells(notebook))
    named = re.findall(r'counts ?= ?"([\w ]+)"', source)
    counts = {name for each in named for name in each.split()}
    asked = {name for name, value in read_notebook(path).defaults.items() if type(value) is int and value > 0}
    assert not asked - counts - CHECKED
    assert counts <= asked  # no count is open by default


def test_lists_with_commas_are_read_by_what_strips_their_blanks(notebook):
    assert not [cell.source for cell in code_cells(notebook) if 'split(",")' in cell.source]  # names_in, numbers_in


def test_the_notebook_is_short_enough_to_read(notebook):
    cells = code_cells(notebook)
    assert len(cells) <= MAXIMUM_CODE_CELLS
    for index, cell in enumerate(cells):
        # lines of choices, `# name: a | b`, are no settings
        lines = len([line for line in cell.source.splitlines() if " | " not in line or not line.startswith("#")])
        most = MAXIMUM_PARAMETERS if cell in parameter_cells(notebook) else MAXIMUM_CELL_LINES
        assert lines <= most, f"code cell {index} has {lines} lines"
        assert lines > 0, f"code cell {index} is empty"


def test_longer_definitions_live_in_the_package(notebook):
    for cell in code_cells(notebook):
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= MAXIMUM_DEFINITION_LINES, f"{node.name} has {lines} lines: move it to workbench/"


def test_one_code_cell_holds_the_parameters(notebook):
    assert [cell.cell_type for cell in parameter_cells(notebook)] == ["code"]


def test_parameters_are_annotated_scalars_each_with_a_comment(notebook):
    (cell,) = parameter_cells(notebook)
    statements = ast.parse(cell.source).body
    assert statements
    commented = commented_lines(cell.source)
    for statement in statements:
        text = ast.unparse(statement)
        assert isinstance(statement, ast.AnnAssign), f"{text!r} is not `name: type = value  # comment`"
        assert isinstance(statement.target, ast.Name)
        kind = SCALARS.get(ast.unparse(statement.annotation))
        assert kind, f"{text!r}: a parameter is one of {', '.join(SCALARS)}"
        assert statement.value, f"{text!r} has no default"
        value = ast.literal_eval(statement.value)  # raises where something is derived
        assert type(value) is kind, f"{text!r}: the default is not of the annotated type"
        # On the same line: from there papermill and `workbench run` read a parameter's help.
        assert statement.end_lineno in commented, f"{text!r} has no comment"


def test_the_choices_that_parameters_cells_list_are_those_of_the_package():
    tables = {
        "01_pretrain.preset": load.PRESETS,
        "03_preferences.labelers": session.WHO,
        "03_preferences.panel": tasks.PANELS,
        "03_preferences.kinds": session.COLLECTED,
        "05_reward_model.preset": load.PRESETS,
        "05_reward_model.objective": reward_model.OBJECTIVES,
        "06_policy_gradient.ensemble": ensembles.ENSEMBLES,
        "06_policy_gradient.algorithm": algorithms.ALGORITHMS,
        "06_policy_gradient.kl_in": policy_gradient_config.CHOICES["kl_in"],
        "06_policy_gradient.kl_estimator": policy_gradient_config.CHOICES["kl_estimator"],
        "07_best_of_n.fine_tune": imitation.SELECTIONS,
        "08_direct_alignment.loss": [*direct_alignment.LOSSES, "ilql"],
        "12_compare_runs.temperature": evaluation.TEMPERATURES,
        "18_merging.method": merging.METHODS,
        "13_iterated_labels.labels": rounds.ARMS,
        "13_iterated_labels.panel": tasks.PANELS,
        "13_iterated_labels.algorithm": algorithms.ALGORITHMS,
        "16_verifiable_rewards.algorithm": [name for name, row in algorithms.ALGORITHMS.items() if not row.has_critic],
    }
    tables |= {f"{path.stem}.sinks": progress.SINKS for path in PATHS}
    tables |= {f"{path.stem}.precision": computing.PRECISIONS for path in PATHS}
    listed = {
        f"{path.stem}.{parameter.name}": parameter.choices
        for path in PATHS
        for parameter in read_notebook(path).parameters.values()
        if parameter.choices
    }
    few = {
        "07_best_of_n.split",
        "04_labeler_agreement.kind",
        "05_reward_model.start",
        "05_reward_model.half",
        "06_policy_gradient.whiten_advantages",
    }
    assert few < set(listed) and set(listed) - few <= set(tables)
    assert {name: sorted(choices) for name, choices in listed.items() if name in tables} == {
        name: sorted(table) for name, table in tables.items() if name in listed
    }


def test_every_parameter_with_a_path_as_default_is_looked_for_before_a_kernel_starts():
    reading = {
        parameter.name
        for path in PATHS
        for parameter in read_notebook(path).parameters.values()
        if parameter.kind == "str" and "/" in parameter.default and parameter.name != "run_dir"
    }
    assert reading <= set(SOURCES)
