"""Tables whose texts are shown whole, as text."""

import pandas as pd
from IPython.display import HTML


def text_table(frame: pd.DataFrame, *, digits: int = 3) -> HTML:
    """The table as HTML, every text whole and escaped: what a model wrote is never run."""
    with pd.option_context("display.max_colwidth", None):
        return HTML(
            frame.to_html(index=False, escape=True, float_format=f"{{:.{digits}f}}".format, na_rep="", border=0)
        )
