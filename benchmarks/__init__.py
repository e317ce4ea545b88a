"""Measurements of ourselves beside a peer, on the same work and servers, in one run: `make bench`."""
