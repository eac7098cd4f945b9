"""distill: build and train the hybrid linear-attention students that distill-eval measures.

Importing it registers the student with transformers' Auto classes.
"""

import sys
from pathlib import Path

from distill_eval import __version__

# The command line imports what a command needs itself: its --help should not wait seconds for torch.
if Path(sys.argv[0]).stem != "distill":
    from distill.conversion import convert
    from distill.hybrid import HybridForCausalLM
    from distill.hybrid_config import HybridConfig

__all__ = ["HybridConfig", "HybridForCausalLM", "__version__", "convert"]
