"""What the Trainers of pruning and distillation share: a loss on labels beside other terms."""
