"""What git keeps of a notebook: `make lab` sets this as its filter, so that one that was run is not a changed one."""

import json
import subprocess
import sys
from pathlib import Path

LEFT_BY_RUNNING = ("ExecuteTime", "collapsed", "execution", "papermill", "scrolled")  # metadata of a cell
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def cleaned(text: str) -> str:
    """The notebook without what running it adds, laid out as JupyterLab saves it; what is no notebook as it is."""
    try:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            kept = {name: value for name, value in cell["metadata"].items() if name not in LEFT_BY_RUNNING}
            cell |= {"metadata": kept}
            cell |= {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        about = {name: value for name, value in notebook["metadata"].items() if name not in ("papermill", "widgets")}
        notebook["metadata"] = about | {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    except (ValueError, KeyError, TypeError, AttributeError):  # in the middle of a merge, for example
        return text
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def after_saving(os_path: str, model: dict, contents_manager: object) -> None:
    """Jupyter's hook: tell git that a file of another size holds what it knows, or it lists the file as modified."""
    path = Path(os_path)
    known = subprocess.run(["git", "show", f":./{path.name}"], cwd=path.parent, capture_output=True)
    if known.returncode == 0 and cleaned(path.read_text(encoding="utf-8")).encode() == known.stdout:
        subprocess.run(["git", "add", "--", path.name], cwd=path.parent, capture_output=True)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    sys.stdin.reconfigure(encoding="utf-8", newline="")
    sys.stdout.write(cleaned(sys.stdin.read()))
