"""The service over HTTP: routes, the one flow that answers, errors, keys and the transport."""
