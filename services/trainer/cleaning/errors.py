"""What a cleaning run is refused for."""


class ConfigError(ValueError):
    """A setting that cannot work, with the remedy."""
