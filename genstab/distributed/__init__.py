"""Several processes: gradients and batch norm averaged, how they meet, and what happens when one is lost."""
