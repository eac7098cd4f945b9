"""Pure functions on Records: estimates, deltas and gaps, and what explains them.

From a notebook::

    from distill_eval.analysis import compare_records, explain_records, records_frame

    frame = records_frame(records)
    results = compare_records(frame, tasks, ["teacher", "student"])
    explanation = explain_records(frame, tasks, ["teacher", "student"], results=results)
"""

from distill_eval.analysis.comparison import compare_records
from distill_eval.analysis.explanation import explain_records
from distill_eval.analysis.frame import records_frame

__all__ = ["compare_records", "explain_records", "records_frame"]
