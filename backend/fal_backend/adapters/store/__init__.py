"""The store: one schema, compiled statements, one group-committing writer."""
