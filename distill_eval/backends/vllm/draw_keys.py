"""Under which names a request carries what its draws need, in vLLM's ``SamplingParams.extra_args``."""

TAG = "distill_eval_tag"  # unique per request: what its margins are fetched by
KEY = "distill_eval_key"  # the request in the noise, a signed 64-bit integer
SAMPLING = "distill_eval_sampling"  # temperature, top-p, top-k
CAREFUL = "distill_eval_careful"  # true: never leave a draw open, at the price of waiting for the device

OPEN = -1.0  # the margin of a draw that was left open: its request must be drawn again, carefully
