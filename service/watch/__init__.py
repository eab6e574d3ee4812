"""What an operator sees: counters, spans, and the access log."""
