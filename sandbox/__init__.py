"""The controller: workspaces, engines, ledger, decision and promotion."""
