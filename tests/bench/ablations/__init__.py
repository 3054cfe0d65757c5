"""The SimPO paper's ablations in small, on the practice task: recipe, runs, table."""
