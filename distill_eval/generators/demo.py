"""The demo's generators: each returns its items, the same ones every time."""

from itertools import product

from distill_eval.generators import facts
from distill_eval.generators.build import Draft, arrange, close_numbers, draw, number

NUM_ITEMS = 20
# What is looked up in a list is closer to chance for small models than what is known by heart: more items.
NUM_RECALL_ITEMS = 40
NUM_PAIRS = 4


def capitals() -> tuple[dict, ...]:
    """Ask for capitals of countries, among capitals of the same continent."""
    drafts = []
    for group in facts.CAPITALS.values():
        for country, capital in group:
            others = [other for _, other in group if other != capital]
            distractors = draw(others, 3, "capitals", country)
            drafts.append(Draft(f"What is the capital of {country}?", capital, distractors))
    return _items("capitals", drafts)


def opposites() -> tuple[dict, ...]:
    """Ask for opposites, among opposites of other words of the same kind."""
    drafts = []
    for group in facts.OPPOSITES.values():
        for word, opposite in group:
            others = [other for _, other in group if other != opposite]
            distractors = draw(others, 3, "opposites", word)
            drafts.append(Draft(f"What is the opposite of {word}?", opposite, distractors))
    return _items("opposites", drafts)


def plurals() -> tuple[dict, ...]:
    """Ask for plurals, among wrong plurals of the same word."""
    drafts = [Draft(f"What is the plural of {word}?", right, wrong) for word, right, wrong in facts.PLURALS]
    return _items("plurals", drafts)


def number_words() -> tuple[dict, ...]:
    """Ask for the digits of the numbers from one to twenty."""
    drafts = []
    for value, word in enumerate(facts.NUMBER_WORDS, start=1):
        question = f"Write the number {word} in digits."
        drafts.append(Draft(question, str(value), close_numbers(value, "number_words", word)))
    return _items("number_words", drafts)


def short_answer() -> tuple[dict, ...]:
    """Ask what most people learn at school; one word answers it."""
    return _items("short_answer", [Draft(*fact) for fact in facts.SHORT_ANSWERS])


def last_word() -> tuple[dict, ...]:
    """Ask for the last word of a sentence that leaves little choice."""
    drafts = [
        Draft(f"Finish this sentence: {start} ...", last, wrong) for start, last, wrong in facts.SENTENCES
    ]
    return _items("last_word", drafts)


def addition() -> tuple[dict, ...]:
    """Ask for sums of two digits from 2 to 9; no option repeats a number of the question."""
    drafts = []
    for a, b in product(range(2, 10), repeat=2):
        options = close_numbers(a + b, "addition", a, b, avoid=(a, b))
        drafts.append(Draft(f"How much is {a} + {b}?", str(a + b), options))
    return _items("addition", drafts)


def multiplication() -> tuple[dict, ...]:
    """Ask for products of two digits from 2 to 9, among products one step away and near numbers."""
    drafts = []
    for a, b in product(range(2, 10), repeat=2):
        off_by = {off for step in (a, b, 1, 2) for off in (step, -step)}
        near = sorted({a * b + off for off in off_by} - {a, b, 0})
        options = tuple(str(n) for n in draw(near, 3, "multiplication", a, b))
        drafts.append(Draft(f"What is {a} multiplied by {b}?", str(a * b), options))
    return _items("multiplication", drafts)


def recall() -> tuple[dict, ...]:
    """Give numbers to names and ask for one of them; the other numbers are the options."""
    drafts = []
    for index in range(NUM_RECALL_ITEMS):
        names = draw(facts.NAMES, NUM_PAIRS, "recall names", index)
        values = draw(range(100, 1000), NUM_PAIRS, "recall values", index)
        asked = number(NUM_PAIRS, "recall asked", index)
        pairs = ", ".join(f"{name} = {value}" for name, value in zip(names, values, strict=True))
        others = tuple(str(value) for value in values if value != values[asked])
        drafts.append(Draft(f"{pairs}. What is {names[asked]}?", str(values[asked]), others))
    return arrange(drafts, "recall")


def _items(name: str, drafts: list[Draft]) -> tuple[dict, ...]:
    chosen = draw([draft.question for draft in drafts], NUM_ITEMS, "items", name)
    by_question = {draft.question: draft for draft in drafts}
    return arrange([by_question[question] for question in chosen], name)
