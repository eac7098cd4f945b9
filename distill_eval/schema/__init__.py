"""Frozen dataclasses that cross module borders; no logic beyond what keeps them valid."""
