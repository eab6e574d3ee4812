"""Tests of augserve.training."""
