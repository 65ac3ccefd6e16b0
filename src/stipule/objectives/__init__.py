"""From rewards to a loss: credit, ratio, objective."""
