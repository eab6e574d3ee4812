"""What augserve promises in numbers, measured. One promise per file."""
