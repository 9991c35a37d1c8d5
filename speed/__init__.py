"""The same networks, several times as fast. Nothing here is needed to understand the paper."""
from speed.accelerate import accelerate
from speed.formats import memory_format

__all__ = ["accelerate", "memory_format"]
