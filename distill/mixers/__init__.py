"""Sequence mixers that take the place of a teacher's attention; ``base`` states their contract."""

from distill.mixers.base import Mixer
from distill.mixers.gated_deltanet import GatedDeltaNetMixer
from distill.mixers.kda import KDAMixer
from distill.mixers.mamba2 import Mamba2Mixer

MIXERS: dict[str, type[Mixer]] = {
    "kda": KDAMixer,
    "mamba2": Mamba2Mixer,
    "gated_deltanet": GatedDeltaNetMixer,
}

__all__ = ["MIXERS", "GatedDeltaNetMixer", "KDAMixer", "Mamba2Mixer", "Mixer"]
