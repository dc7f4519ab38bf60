"""The figures of an executed notebook as PNG files, for pages that can not run JavaScript."""

from pathlib import Path

import nbformat
import plotly.io

from workbench import WorkbenchError
from workbench.runs.files import replace_file, shown

PLOTLY = "application/vnd.plotly.v1+json"


def write_pictures(notebook: Path, folder: Path, *, width: int = 900, scale: float = 1.5) -> list[Path]:
    """Write each figure of `notebook`, in order, to `folder`/<stage>-<number>.png on white; the files.

    Raises WorkbenchError where the notebook was not executed, or no Chromium is there to draw with.
    """
    if not notebook.exists():
        raise WorkbenchError(f"{shown(notebook)} does not exist: run its notebook first.")
    outputs = (output for cell in nbformat.read(notebook, as_version=4).cells for output in cell.get("outputs", []))
    figures = [output["data"][PLOTLY] for output in outputs if PLOTLY in output.get("data", {})]
    written = []
    for number, spec in enumerate(figures, start=1):
        figure = plotly.io.from_json(plotly.io.json.to_json_plotly({key: spec[key] for key in ("data", "layout")}))
        figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
        path = folder / f"{notebook.parent.name}-{number}.png"
        refuse_other_picture(path, pixels=round(width * scale))
        with replace_file(path) as partial:
            try:
                partial.write_bytes(figure.to_image(format="png", width=width, scale=scale))
            except Exception as error:  # kaleido raises many kinds, all about the browser it drives
                raise WorkbenchError(
                    f"No picture could be drawn ({str(error).splitlines()[0][:120]}): "
                    "install Chromium and set BROWSER_PATH to it, and install this project with [dev]."
                ) from error
        written.append(path)
    return written


def refuse_other_picture(path: Path, *, pixels: int) -> None:
    """WorkbenchError where a file is there already that is no PNG as wide as ours."""
    if path.exists() and path.read_bytes()[16:20] != pixels.to_bytes(4, "big"):
        raise WorkbenchError(
            f"{shown(path)} is no picture of the workbench and would be lost: choose another --pictures."
        )
