"""A cluster whose schedulers are real programs and whose clock and models are not: what scheduling costs (§6.6)."""
