"""A gate as JUnit XML, the form CI systems show test results in: a check is a test case."""

from xml.etree import ElementTree

from distill_eval.render.gate import sentence, sorted_checks, title_of
from distill_eval.render.text import one_line, visible
from distill_eval.schema.gate import FAIL, INCONCLUSIVE, REFUSAL, REFUSED, GateResult


def render_junit(result: GateResult) -> str:
    """Return the XML: a failing check is a failure, an inconclusive one skipped, a refused comparison an error."""
    refusals = (
        [d.text for d in result.differences if d.severity == REFUSAL] if result.outcome == REFUSED else []
    )
    counts = {
        "tests": len(result.checks) + len(refusals),
        "failures": sum(check.outcome == FAIL for check in result.checks),
        "errors": len(refusals),
        "skipped": sum(check.outcome == INCONCLUSIVE for check in result.checks),
    }
    numbers = {name: str(count) for name, count in counts.items()}
    totals = {name: count for name, count in numbers.items() if name != "skipped"}  # only suites count those
    root = ElementTree.Element("testsuites", {"name": "distill-eval gate", **totals, "time": "0"})
    suite = ElementTree.SubElement(root, "testsuite", {"name": "distill-eval gate", **numbers, "time": "0"})
    for check in sorted_checks(result):
        case = _case(suite, f"gate.{check.kind}", title_of(check))
        if check.outcome == FAIL:
            _outcome(case, "failure", check.why, "loss beyond the margin")
        elif check.outcome == INCONCLUSIVE:
            ElementTree.SubElement(case, "skipped", {"message": _clean(f"inconclusive: {check.why}")})
    for text in refusals:
        _outcome(_case(suite, "gate.comparability", text), "error", text, "runs do not compare")
    told = [sentence(result), *(f"{d.severity}: {d.text}" for d in result.differences), *result.notes]
    ElementTree.SubElement(suite, "system-out").text = visible("\n".join(told))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _case(suite: ElementTree.Element, group: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(suite, "testcase", {"classname": group, "name": _clean(name), "time": "0"})


def _outcome(case: ElementTree.Element, tag: str, text: str, kind: str) -> None:
    ElementTree.SubElement(case, tag, {"message": _clean(text), "type": kind}).text = _clean(text)


def _clean(text: str) -> str:
    return one_line(text)  # also free of the control characters that XML cannot hold
