"""An engine without a model: real scheduling of real batches, whose steps are only waited for (§6.6)."""
