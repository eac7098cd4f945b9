import pytest

from distill_eval.provenance import command_line


@pytest.mark.parametrize(
    ("program", "shown"),
    [
        ("/opt/venv/bin/distill-eval", "distill-eval"),
        ("/somewhere/distill_eval/cli/main.py", "distill-eval"),  # python -m distill_eval.cli.main
    ],
)
def test_the_command_can_be_typed_again(monkeypatch, program, shown):
    monkeypatch.setattr("sys.argv", [program, "compare", "teacher=my models/a", "--limit", "5"])
    assert command_line() == f"{shown} compare 'teacher=my models/a' --limit 5"
