"""The command line: one function a command, nothing heavy imported before a command needs it."""

from distill_eval.cli.entry import make_app, run_app

COMMANDS = {
    "bench-backends": "distill_eval.cli.bench_backends:bench_command",
    "compare": "distill_eval.cli.compare:compare_command",
    "export": "distill_eval.cli.interchange:export_command",
    "gate": "distill_eval.cli.gate:gate_command",
    "import": "distill_eval.cli.interchange:import_command",
    "longcontext": "distill_eval.cli.longcontext:longcontext_command",
    "prefetch": "distill_eval.cli.prefetch:prefetch_command",
    "probe": "distill_eval.cli.probe:probe_command",
    "profile": "distill_eval.cli.profile:profile_command",
    "report": "distill_eval.cli.report:report_command",
    "reproduce": "distill_eval.cli.reproduce:reproduce_command",
}
GROUPS = {
    "tasks": "distill_eval.cli.tasks:app",
}

app = make_app(
    "distill-eval",
    COMMANDS,
    groups=GROUPS,
    help="Show what log-likelihood says about a distilled model, what generation says, and the gap between them.",
    epilog="Start with: `distill-eval compare demo:smollm2 demo:smollm2-3bit --suite demo`",
)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    run_app(app, "interrupted; what was answered is kept: run the same command again to go on")


if __name__ == "__main__":
    main()
