"""Files: paths, writing whole or not at all, and limits for YAML and templates."""
