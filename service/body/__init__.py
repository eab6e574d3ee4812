"""What a request holds: from its bytes to checked settings and rows."""
