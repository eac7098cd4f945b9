"""Pure functions on Records: paired estimates, deltas, gaps, averages.

From a notebook::

    from distill_eval.analysis import compare_records, records_frame

    results = compare_records(records_frame(records), tasks, ["teacher", "student"])
"""

from distill_eval.analysis.comparison import compare_records
from distill_eval.analysis.frame import records_frame

__all__ = ["compare_records", "records_frame"]
