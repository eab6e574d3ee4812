"""How a model fares on inputs that are perturbed. One attack per file."""

from augserve.attacks.simba import SimbaResult, simba

__all__ = ["SimbaResult", "simba"]
