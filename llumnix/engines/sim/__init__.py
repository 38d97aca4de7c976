"""A simulated vLLM instance: continuous batching on a cost model, in virtual time."""
