"""Egress by allowlist: a proxy outside the sandbox, one Unix socket into it, a forwarder on `lo` inside."""
