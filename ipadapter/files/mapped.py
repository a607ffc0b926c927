"""Files that are mapped into memory: what was read of them is given back to the system, so that a
file larger than the memory passes through a small part of it.

A mapped page that nobody has changed can be dropped at any time and read again. Linux counts it as
the program's memory until it is short of memory; other systems are left to do it by themselves.
"""

from __future__ import annotations

import ctypes
import mmap
import re
import sys
from functools import cache

from torch import Tensor

STEP = 64 << 20  # bytes read before they are given back
_WORTH = 8 << 20  # bytes from which a tensor is worth the search
_DROP = 4  # MADV_DONTNEED
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


def worth_giving_back(tensor: Tensor) -> bool:
    """Whether a tensor is large, and in memory where `give_back` does anything."""
    here = sys.platform == "linux" and tensor.device.type == "cpu" and tensor.is_contiguous()
    return here and tensor.numel() * tensor.element_size() >= _WORTH


def give_back(tensor: Tensor) -> None:
    """Drop the pages of a mapped file that a tensor lies in: they are read again when they are
    looked at. Nothing happens to memory that is no file's, or that has been written to."""
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    page = mmap.PAGESIZE
    begin = -(-tensor.data_ptr() // page) * page
    end = (tensor.data_ptr() + tensor.numel() * tensor.element_size()) // page * page
    if end > begin and _only_read(begin, end):
        _libc().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _DROP)


def _only_read(begin: int, end: int) -> bool:
    """Whether these addresses are a file's, and no page of its mapping has been changed."""
    found = False
    try:
        with open("/proc/self/smaps", encoding="utf-8") as lines:
            for line in lines:
                if match := _HEAD.match(line):
                    found = int(match[1], 16) <= begin and end <= int(match[2], 16)
                    found = found and match[3] != "0"
                elif found and line.startswith("Anonymous:"):
                    return line.split()[1] == "0"
    except OSError:  # a system without it
        return False
    return False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
