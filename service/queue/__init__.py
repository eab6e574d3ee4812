"""Who waits and who runs: places, deadlines, turns, and the passes of the graphs."""
