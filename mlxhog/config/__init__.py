"""Every option in one definition: from dataclass to YAML, flags, help text and saved copy."""
