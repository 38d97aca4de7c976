"""Scheduling policies: pure functions from loads to decisions, and the dataclasses that configure them."""
