"""Who says which tokens matter: one file or folder each."""
