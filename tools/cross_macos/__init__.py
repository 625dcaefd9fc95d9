"""The plugin for macOS on arm64, built on Linux: python -m tools.cross_macos."""
