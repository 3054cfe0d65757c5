"""Search on Ray: specs, the deterministic searcher, warm trials, the run directory and the leaderboard."""
