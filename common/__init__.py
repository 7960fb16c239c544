"""The core that the papers share. It never imports `papers`."""
