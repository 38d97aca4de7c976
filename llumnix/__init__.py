"""Scheduling for LLM serving across many instances: dispatch, live migration, priorities, scaling.

The package decides *where* a request runs and *when* it moves. It does not know about Hydra, pandas or plots,
and its policies do not know whether they drive a simulated cluster or a real one.
"""
