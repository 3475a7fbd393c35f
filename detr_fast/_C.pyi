# The compiled module is private: its functions take addresses, which no type describes.
from typing import Any

def __getattr__(name: str) -> Any: ...
