"""summary.md: what a report says, for a pull request or a terminal."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distill_eval.render.failures import TERM_NAMES
from distill_eval.render.ranking import probability
from distill_eval.render.report.model_tables import ranking_table
from distill_eval.render.table1 import table1
from distill_eval.render.tables import column_groups, escape_markdown, render_markdown, select_columns
from distill_eval.render.text import join_names, number, one_line
from distill_eval.render.verdict import excludes_zero, headline, headline_identities, verdicts
from distill_eval.schema.explanation import Explanation
from distill_eval.schema.failures import TERMS
from distill_eval.schema.ranking import Ranking, WrongChoice
from distill_eval.schema.report import ReportFigure, ReportSource
from distill_eval.schema.results import Results
from distill_eval.schema.tables import Column, Table

_SECTIONS = (("ranking", "Ranking"), ("efficiency", "Speed and memory"), ("longcontext", "Long contexts"))


def render_summary(source: ReportSource, figures: Sequence[ReportFigure]) -> bytes:
    """Return Markdown: the verdict, warnings, Table 1, what the gap is made of, reversals, figures, the commands.

    Images are relative links into ``figures/``. What models and users named cannot become markup.
    """
    results, explanation = source.results, source.explanation
    parts = [f"# {escape_markdown(_title(source))}"]
    if results is not None:
        parts += [f"**{escape_markdown(sentence)}**" for _, sentence in verdicts(results, explanation)]
        parts += [f"> **Warning:** {escape_markdown(warning)}" for warning in results.warnings]
    parts += _images(figures, "first")
    if results is not None:
        parts += ["## Scores", *_scores(results)]
    if results is not None and explanation is not None:
        causes = [_causes(results, explanation, label) for label in results.checkpoints[1:]]
        tables = [render_markdown(table) for table in causes if table is not None]
        parts += ["## What the gap is made of", *tables] if tables else []
    parts += _images(figures, "tasks")
    ranking = explanation.ranking if explanation and len(explanation.checkpoints) > 2 else None
    for section, title in _SECTIONS:
        texts = _images(figures, section)
        if section == "ranking" and ranking and explanation:
            texts = [
                *_reversals(ranking),
                render_markdown(ranking_table(ranking, explanation.checkpoints)),
                *texts,
            ]
        parts += [f"## {title}", *texts] if texts else []
    parts += _commands(source)
    return ("\n\n".join(part.rstrip("\n") for part in parts) + "\n").encode()


def _title(source: ReportSource) -> str:
    if source.results is not None:
        reference, *others = map(one_line, source.results.checkpoints)
        return f"{join_names(others)} against {reference}" if others else reference
    profile, longcontext = source.profile, source.longcontext
    if profile is not None:
        return f"Speed and memory on {profile.device_name}"
    return (
        f"Long contexts: {join_names(list(longcontext.checkpoints))}" if longcontext is not None else "Report"
    )


def _scores(results: Results) -> list[str]:
    """Table 1, one for each protocol: side by side they are too wide to be read as text."""
    table = table1(results)
    groups = [
        [n for n, c in enumerate(table.columns) if c.group == name]
        for name, _ in column_groups(table.columns)
    ]
    texts = []
    for places in groups[1:]:
        part = select_columns(table, [0, *places])
        columns = tuple(replace(column, group="") for column in part.columns)
        title = f"{table.columns[places[0]].group}, accuracy in %"
        texts.append(render_markdown(replace(part, columns=columns, title=title)))
    return [*texts, *(escape_markdown(note) for note in table.notes)]


def _images(figures: Sequence[ReportFigure], section: str) -> list[str]:
    """Images with what they show in a sentence; the values are in the tables and beside the image, as CSV."""
    return [
        f"![{escape_markdown(f'{figure.title}: {_first_sentence(figure.text)}')}](figures/{figure.name}.png)"
        for figure in figures
        if figure.section == section
    ]


def _first_sentence(text: str) -> str:
    first, stop, _ = text.partition(". ")
    return first + stop.strip()


def _causes(results: Results, explanation: Explanation, candidate: str) -> Table | None:
    """The parts of a candidate's gap, averaged over the tasks of its headline."""
    row, found = headline(results, candidate), headline_identities(results, explanation, candidate)
    if row is None or row.gap is None or not found:
        return None
    whole = sum(identity.gap.value for identity in found) / len(found)
    parts = {name: sum(i.terms[name].estimate.value for i in found) / len(found) for name in TERMS}
    certain = excludes_zero(row.gap)
    rows = [
        (TERM_NAMES[name], number(value, signed=True), f"{value / whole:.0%}" if certain and whole else "")
        for name, value in sorted(parts.items(), key=lambda part: -abs(part[1]))
        if number(value) != "0.0"
    ]
    rows.append(("gap", number(whole, signed=True), ""))
    note = (
        f"Mean over {len(found)} task{'s' if len(found) > 1 else ''}. Each part: items that are ranked right, by how "
        f"their generation ends, {one_line(candidate)} minus {one_line(results.checkpoints[0])}; the parts add up."
    )
    if not certain:
        note += " No shares: the gap's 95% interval includes 0."
    columns = (Column("cause", "left"), Column("pp"), Column("share of the gap"))
    strong = frozenset((len(rows) - 1, place) for place in range(2))
    return Table(
        "causes", f"The gap of {one_line(candidate)}", columns, tuple(rows), strong=strong, notes=(note,)
    )


def _reversals(ranking: Ranking) -> list[str]:
    if not ranking.wrong_choices:
        return ["Both protocols put the checkpoints in the same order."]
    return ["\n".join(f"- {escape_markdown(_reversal(choice))}" for choice in ranking.wrong_choices)]


def _reversal(choice: WrongChoice) -> str:
    chosen, better = one_line(choice.chosen), one_line(choice.better)
    return (
        f"Log-likelihood picks {chosen} over {better} (ahead by {number(choice.loglikelihood_gain.value)} pp), which "
        f"generates {number(choice.generation_loss.value)} pp worse ({choice.verdict}; the order is reversed in "
        f"{probability(choice.probability_reversed)} of bootstrap replicates)."
    )


def _commands(source: ReportSource) -> list[str]:
    """The commands that made what is shown, each as code that its text cannot end."""
    runs: list[Mapping[str, Any]] = [source.provenance, *source.other_provenance.values()]
    commands = [one_line(facts["command"]) for facts in runs if facts.get("command")]
    if not commands:
        return []
    fence = "`" * max(3, 1 + max(map(_longest_backticks, commands)))
    parts = ["## Reproduce", "\n".join([f"{fence}sh", *commands, fence])]
    versions = source.provenance.get("versions", {})
    named = [
        f"{name} {versions[name]}"
        for name in ("distill-eval", "torch", "lm-eval", "evalscope")
        if name in versions
    ]
    made = str(source.provenance.get("created", ""))[:10]
    parts += (
        [escape_markdown(f"Run {made} with {', '.join(named)}." if made else f"{', '.join(named)}.")]
        if named
        else []
    )
    return parts


def _longest_backticks(text: str) -> int:
    return max((len(run) for run in "".join(c if c == "`" else " " for c in text).split()), default=0)
