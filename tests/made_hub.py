"""A hub made in memory, for mirrors."""

from distill_eval.prefetch import Part, prefetch

QUESTIONS = [
    {"question": f"Which of these is number {i}?", "choices": [f"{j}" for j in range(i, i + 4)], "answer": 0}
    for i in range(5)
]
HUB = {
    ("maker/quiz", "default", "test"): QUESTIONS,
    ("maker/quiz", "default", "train"): QUESTIONS[:2],
    ("maker/other", "easy", "test"): QUESTIONS[:3],
}
PARTS = tuple(Part(source, config, split, source) for source, config, split in HUB)


class Hub:
    """A hub in memory that counts what it is asked and can fail."""

    def __init__(self, data=HUB, fail_at=None):
        self.data, self.fail_at = data, fail_at
        self.fetched, self.commits = [], []

    def commit_of(self, source, revision):
        self.commits.append((source, revision))
        return f"commit-of-{source.split('/')[1]}"

    def fetch(self, source, config, split, commit):
        import pyarrow

        assert commit == f"commit-of-{source.split('/')[1]}"
        if len(self.fetched) == self.fail_at:
            raise ConnectionError("the network\nis down")
        self.fetched.append((source, config, split))
        return pyarrow.Table.from_pylist(self.data[source, config, split])

    def fill(self, folder, parts=PARTS, tasks=(), **more):
        return prefetch(tasks, folder, parts=parts, commit_of=self.commit_of, fetch=self.fetch, **more)
