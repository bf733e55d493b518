"""Real MNIST images that ship with the package; see NOTICE.md for licence and origin."""
