"""Adapters: one module per host code base. Imported as `semples_plugin.adapters`."""

if __name__ != "semples_plugin.adapters":
    # One file under two names would give two classes that are not each other's instances.
    raise ImportError(f"import semples_plugin.adapters, not {__name__}")
