"""Lightning callbacks."""

from common.callbacks.bookkeeping import Bookkeeping

__all__ = ["Bookkeeping"]
