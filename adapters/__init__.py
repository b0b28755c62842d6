"""Adapters: Directed Evolution as a drop-in choice in other frameworks, one file a host."""

if __name__ != "de_plugin.adapters":
    raise ImportError(
        f"the adapters were imported as {__name__!r}, expected 'de_plugin.adapters': install "
        "de_plugin and write 'from de_plugin.adapters import ...'"
    )
