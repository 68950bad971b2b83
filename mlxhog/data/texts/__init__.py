"""Text that ships with the package; SOURCES.md says where it comes from."""
