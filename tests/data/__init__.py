"""Tests of augserve.data."""
