"""One module a protocol: adapters between HTTP and the data plane, nothing more."""
