"""The paper's sentences with a number in them, as data (figNN.toml), and what our points say about each."""
