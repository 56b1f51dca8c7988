"""Files of every kind: written whole or not at all, YAML with bounds, templates with bounds."""
