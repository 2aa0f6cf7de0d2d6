"""The back rooms of `gleak_core.data`, which is the one to import: registry, forms, downloads."""
