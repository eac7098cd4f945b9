"""The ``distill`` command line: one file a command, nothing heavy imported before a command needs it."""

from distill_eval.cli.entry import make_app, run_app

COMMANDS = {
    "convert": "distill.cli.convert:convert_command",
    "export": "distill.cli.export:export_command",
    "generate-data": "distill.cli.generate_data:generate_data_command",
    "recipes": "distill.cli.recipes:recipes_command",
    "train": "distill.cli.train:train_command",
}

app = make_app(
    "distill",
    COMMANDS,
    help="Make hybrid linear-attention students of Transformer teachers and train them; `distill-eval` measures them.",
    epilog="Start with: `distill generate-data demo:smollm2 data`, then `distill train smollm2-kda --out runs/kda`.",
)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    run_app(app)


if __name__ == "__main__":
    main()
