"""Stock vLLM V1 as an engine, with live migration through its public plug points. Nothing of vLLM is patched or copied.

engine.py owns an EngineCore and steps it; scheduler.py (scheduler_cls) takes requests out of the batch and puts them
in; worker.py (worker_extension_cls) reads and writes KV blocks; versions.py holds all that differs between versions.
"""
