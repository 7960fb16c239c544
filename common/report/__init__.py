"""The report of a paper: Markdown, one HTML file, plots, the terminal, and the generated blocks of READMEs.

Everything is drawn from the results document, the gathered curves and the bench document; nothing is trained or judged
here. matplotlib, jinja2, rich and SciPy are imported only when something is drawn.
"""

from common.report.curves import read_curves
from common.report.page import write_report
from common.report.readme import record_plots
from common.report.terminal import print_verdicts

__all__ = ["print_verdicts", "read_curves", "record_plots", "write_report"]
