"""RULER (Hsieh et al., 2024) by lm-eval's tasks: its generators, prompts, decoding and scorer.

lm-eval makes 500 samples a length when it loads a task, with whatever tokenizer it finds, and draws from Python's
random state as the lengths before left it. Here every length starts from the seeds of lm-eval's command line, the
checkpoint's own tokenizer measures, and generation ends with the samples that are wanted: they are the first of the
500 that lm-eval makes when it is given that one task and length.

What was made is kept in the cache folder: for 128K tokens lm-eval's search for the right length takes a minute.
"""

import contextlib
import functools
import gzip
import hashlib
import io
import json
import os
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

from distill_eval.content import default_cache_dir
from distill_eval.data import ENVIRONMENT
from distill_eval.errors import DataError, OptionError, OutputError, TaskError, UserError
from distill_eval.protocols.longcontext import SCORE, LongItem, LongTask
from distill_eval.schema.run import RunOptions
from distill_eval.schema.tasks import ItemKey, LoglikelihoodSpec, TaskSpec

NIAH_SINGLE = ("niah_single_1", "niah_single_2", "niah_single_3")
TASKS = (
    *NIAH_SINGLE, "niah_multikey_1", "niah_multikey_2", "niah_multikey_3", "niah_multivalue", "niah_multiquery",
    "ruler_vt", "ruler_cwe", "ruler_fwe", "ruler_qa_squad", "ruler_qa_hotpot",
)  # fmt: skip
ESSAYS = "baber/paul_graham_essays"
NUM_SAMPLES = 500  # lm-eval's, of each length
# What makes the samples: one of these is in the module of every task's function.
_MAKERS = ("generate_samples", "sys_vartrack_w_noise_random", "sys_word_pair_random", "sys_kwext")
_WITH_ESSAYS = ("niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
_NOT_KEPT = (
    "ruler_fwe",
    "ruler_qa_squad",
    "ruler_qa_hotpot",
)  # made in a moment, or of files that may change
_REVISION = 1  # of what is kept; raise it when the same call makes other samples
_MARGIN = 1.1  # samples of one size differ by a few tokens


def task_names() -> tuple[str, ...]:
    """Return RULER's tasks by lm-eval's names."""
    return TASKS


def expand(name: str) -> tuple[str, ...]:
    """Return the tasks behind a name: one, or ``ruler`` for all of them."""
    if name == "ruler":
        return TASKS
    if name not in TASKS:
        raise TaskError(f"RULER has no task '{name}'")
    return (name,)


def task_spec(name: str) -> TaskSpec:
    """Return a task as prefetch knows tasks: the essays are what can be fetched beforehand."""
    (name,) = expand(name)
    config = {"config": {"test_split": "train"}}
    spec = LoglikelihoodSpec((name,), ESSAYS, SCORE, ItemKey(("text",)), options=config)
    return TaskSpec(
        name=name,
        title=name,
        category="long context",
        loglikelihood=None,
        generative=None,
        source_file=f"lm-eval's {name}",
        generate_until=spec if name in _WITH_ESSAYS else None,
    )


def load(names: Sequence[str], tokenizer: Any, options: RunOptions, lengths: Sequence[int]) -> list[LongTask]:
    """Make ``options.limit`` items (None: lm-eval's 500) of each length in tokens, answers included, of each task.

    Raises DataError for essays, questions or NLTK data that are missing, OptionError for a length too short.
    """
    if any(name.startswith("niah") for name in names):
        _check_nltk()
    from distill_eval.protocols.lmeval_tasks import engine_seeds, quiet_engine

    with quiet_engine(), engine_seeds():
        return [_load(name, tokenizer, options, lengths) for name in names]


def needle_starts(doc: Mapping[str, Any], text: str) -> tuple[int, ...]:
    """Return where in ``text`` the needles of ``doc`` that are asked for start, in the order of its answers.

    Those are the sentences of a NIAH task, or the assignments of variable tracking; empty for other tasks.
    """
    prefix = doc["gen_prefix"]
    if prefix.startswith("The special magic"):
        return tuple(_sentence_start(text, value, prefix) for value in doc["outputs"])
    if "chain(s) of variable assignment" in prefix:
        return tuple(text.index(f"VAR {name} =") for name in doc["outputs"])
    return ()


def _sentence_start(text: str, value: str, prefix: str) -> int:
    # The same value may stand under another key as well.
    sentences = re.finditer(rf"One of the special magic \w+ for ([^:]+) is: {re.escape(value)}\.", text)
    return next(found.start() for found in sentences if found[1] in prefix)


def _load(name: str, tokenizer: Any, options: RunOptions, lengths: Sequence[int]) -> LongTask:
    import datasets
    import lm_eval.tasks
    from lm_eval.tasks._yaml_loader import load_yaml

    from distill_eval.protocols.lmeval_engine import prompt_options
    from distill_eval.protocols.lmeval_model import ClientLM

    config = load_yaml(_task_file(name), resolve_func=True)
    make = config["custom_dataset"]
    rows = [row for length in lengths for row in _kept(name, make, length, tokenizer, options)]
    config["custom_dataset"] = lambda **_: {"test": datasets.Dataset.from_list(rows)}
    (engine,) = lm_eval.tasks.TaskManager(include_defaults=False).load([config])["tasks"].values()
    templated = options.apply_chat_template
    model = ClientLM(None, tokenizer, options, f"task '{name}'")
    engine.build_all_requests(
        chat_template=model.apply_chat_template, **prompt_options(templated, options.system_prompt)
    )
    items = tuple(_item(name, instance, tokenizer, templated) for instance in engine.instances)
    return LongTask(name, "ruler", items, functools.partial(_measure, engine))


def _task_file(name: str) -> Path:
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / "ruler" / f"{name.removeprefix('ruler_')}.yaml"


def _kept(
    name: str, make: Callable[..., Any], length: int, tokenizer: Any, options: RunOptions
) -> list[dict[str, Any]]:
    """Return the samples from the cache folder, where as many lie there, or make and keep them."""
    limit = NUM_SAMPLES if options.limit is None else options.limit
    if name in _NOT_KEPT or not tokenizer.is_fast:
        return _make(name, make, length, tokenizer, options.data_dir, limit)
    essays = "\n".join(_essays(name, options.data_dir)["text"]) if name in _WITH_ESSAYS else ""
    versions = [metadata.version(package) for package in ("lm_eval", "wonderwords", "nltk")]
    identity = [
        _REVISION,
        name,
        length,
        *versions,
        _digest(essays),
        _digest(tokenizer.backend_tokenizer.to_str()),
    ]
    folder = (options.cache_dir or default_cache_dir()) / "longcontext"
    path = folder / f"{name}-{length}-{_digest(json.dumps(identity))[:16]}.json.gz"
    with contextlib.suppress(OSError, EOFError, ValueError, KeyError):  # damaged is as good as absent
        found = json.loads(gzip.decompress(path.read_bytes()))
        if found["asked"] >= limit:
            return [row for row in found["rows"] if row["index"] < limit]
    rows = _make(name, make, length, tokenizer, options.data_dir, limit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        staged = path.with_suffix(f".{os.getpid()}")
        staged.write_bytes(
            gzip.compress(json.dumps({"asked": limit, "rows": rows}).encode(), compresslevel=1)
        )
        staged.replace(path)
    except OSError as error:
        raise OutputError(
            f"cache folder {folder}: cannot be written to ({error.strerror or error})"
        ) from error
    return rows


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _make(
    name: str, make: Callable[..., Any], length: int, tokenizer: Any, data_dir: Path | None, limit: int
) -> list[dict[str, Any]]:
    from distill_eval.protocols.lmeval_data import one_line
    from distill_eval.protocols.lmeval_tasks import engine_seeds

    counted = functools.partial(tokenizer, verbose=False)  # no warning that a text is long
    _check_room(name, make.__globals__, counted, length)
    try:
        with _steered(name, make, counted, limit, data_dir), engine_seeds():
            return list(make(max_seq_lengths=[length])["test"])
    except UserError:
        raise
    except IndexError as error:
        raise OptionError(f"--limit {limit}: task '{name}' has fewer questions") from error
    except ValueError as error:  # nothing fits
        raise OptionError(f"--lengths {length}: task '{name}': {one_line(error)}") from error
    except OSError as error:  # questions that cannot be fetched
        raise DataError(f"task '{name}': {one_line(error)}") from error


@contextlib.contextmanager
def _steered(
    name: str, make: Callable[..., Any], tokenizer: Any, limit: int, data_dir: Path | None
) -> Iterator[None]:
    """Give lm-eval's generator our tokenizer, number of samples and data, and take its bars and prints away."""
    own = make.__globals__
    (maker,) = [name for name in _MAKERS if name in own]
    source = own[maker].__globals__

    def fewer(*args: Any, num_samples: int = NUM_SAMPLES, _make: Any = own[maker], **settings: Any) -> Any:
        wanted = limit if num_samples == NUM_SAMPLES else num_samples
        return _make(*args, num_samples=wanted, **settings)

    changed = {maker: fewer, "get_tokenizer": lambda *_: tokenizer}
    inner: dict[str, Any] = {"tqdm": lambda rows, **_: rows}
    if "get_haystack" in source:
        essays = mock.Mock(load_dataset=lambda *_, **__: _essays(name, data_dir))
        inner["datasets"] = essays
    if "download_json" in own and data_dir is not None:
        changed["download_json"] = lambda url: _questions(name, url, data_dir)
    changed |= _fresh_rng(own)
    with (
        mock.patch.dict(source, inner),
        mock.patch.dict(own, changed),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        _forget_data(own)
        try:
            yield
        finally:
            _forget_data(own)


def _fresh_rng(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return a module's own random numbers as they are when lm-eval has just loaded it; samples leave them moved."""
    if "RNG" not in own:
        return {}
    fresh = random.Random(42)
    fresh.shuffle(list(own["WORDS"]))
    return {"RNG": fresh}


def _forget_data(own: Mapping[str, Any]) -> None:
    # lm-eval keeps them for the life of the process, whatever mirror they came from.
    for reader in ("get_haystack", "read_squad", "read_hotpotqa"):
        if reader in own:
            own[reader].cache_clear()


def _essays(name: str, data_dir: Path | None) -> Any:
    from distill_eval.protocols.lmeval_data import load_dataset

    return load_dataset(ESSAYS, {}, "train", task_spec(name), data_dir)["train"]


def _questions(name: str, url: str, data_dir: Path) -> Any:
    path = data_dir / "ruler" / url.rpartition("/")[2]
    if not path.is_file():
        raise DataError(
            f"task '{name}': its questions are not in {data_dir}: save {url} as {path}, or leave out --data-dir and "
            f"{ENVIRONMENT} to let lm-eval fetch them"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def _check_nltk() -> None:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:  # lm-eval would fetch it
        raise DataError(
            "RULER needs NLTK's 'punkt_tab': set NLTK_DATA to a folder that has it, or fetch it with "
            "`python -m nltk.downloader punkt_tab`"
        ) from None


def _check_room(name: str, own: dict[str, Any], tokenizer: Any, length: int) -> None:
    """Refuse a length in which lm-eval's generators would look for a shorter sample for ever."""
    from distill_eval.protocols.lmeval_tasks import engine_seeds

    def count(*texts: str) -> int:
        return sum(len(tokenizer(text).input_ids) for text in texts)

    least = 0.0
    with engine_seeds(), mock.patch.dict(own, _fresh_rng(own)):
        if name == "ruler_vt":
            smallest, _ = own["generate_input_output"](10, 1, 4)
            shown, _ = own["generate_input_output"](5, 1, 4, is_icl=True)
            if (count(shown) + 30) * _MARGIN > 500:
                raise DataError(
                    f"task '{name}': lm-eval's example of 500 tokens is too short for this tokenizer"
                )
            least = 500 + count(smallest) + 30
        elif name == "ruler_cwe":
            example, smallest, words = own["generate_input_output"](10, length)
            least = count(example, smallest, " ".join(words)) + 120 + 2 * len(words)
        elif name == "ruler_fwe":
            least = max(200, count(own["TEMPLATE"]) + 50)
    if least * _MARGIN > length:
        raise OptionError(
            f"--lengths {length}: task '{name}' needs at least {round(least * _MARGIN)} with this tokenizer"
        )


def _item(name: str, instance: Any, tokenizer: Any, templated: bool) -> LongItem:
    doc, (text, settings) = instance.doc, instance.args
    assert not settings["do_sample"], settings
    length = str(doc["max_length"])
    identity = json.dumps([doc["input"], doc["gen_prefix"], doc["outputs"]])
    return LongItem(
        key=f"{name}/{length}/{_digest(identity)[:16]}#{doc['index']}",
        doc=doc,
        prompt=text,
        length=length,
        depth=_depths(needle_starts(doc, text), text, tokenizer, templated),
        max_new_tokens=settings["max_gen_toks"],
        stop=tuple(settings["until"]),
        templated=templated,
        metadata={"target": ", ".join(doc["outputs"]), "doc_id": str(instance.doc_id)},
    )


def _depths(starts: Sequence[int], text: str, tokenizer: Any, templated: bool) -> tuple[float, ...]:
    """Return positions in ``text`` (characters) as percent of its tokens."""
    if not starts:
        return ()
    encoding = tokenizer(text, add_special_tokens=not templated, verbose=False)
    number = len(encoding.input_ids)
    if tokenizer.is_fast:
        return tuple(100 * encoding.char_to_token(start) / number for start in starts)
    before = (tokenizer(text[:start], add_special_tokens=not templated, verbose=False) for start in starts)
    return tuple(100 * len(part.input_ids) / number for part in before)


def _measure(engine: Any, doc: Mapping[str, Any], output: str) -> dict[str, float]:
    length = str(doc["max_length"])
    scores = {SCORE: engine.process_results(doc, [output])[length]}
    if len(doc["outputs"]) > 1 and needle_starts(doc, doc["input"]):
        for number, value in enumerate(doc["outputs"], start=1):
            one = {**doc, "outputs": [value]}
            scores[f"needle_{number}"] = engine.process_results(one, [output])[length]
    return scores
