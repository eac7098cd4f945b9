"""Checkpoints served elsewhere, asked over HTTP through OpenAI's completions route."""
