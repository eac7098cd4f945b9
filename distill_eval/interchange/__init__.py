"""Result folders of lm-eval and EvalScope: read into runs, and written from them."""
