"""A model that is served: opened, checked, measured, kept by name, asked."""
