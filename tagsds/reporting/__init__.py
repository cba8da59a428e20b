"""Around the numbers: checkpoints to evaluate, processes that share the work, results as files and as pictures."""
