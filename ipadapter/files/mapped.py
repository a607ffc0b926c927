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

import numpy as np
from torch import Tensor

STEP = 64 << 20  # bytes read before they are given back
_WORTH = 8 << 20  # bytes from which a tensor is worth the search
_DROP = 4  # MADV_DONTNEED
# Of an entry of Linux's pagemap, one per page.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1 << bit) for bit in (63, 62, 61))
_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


def worth_giving_back(tensor: Tensor) -> bool:
    """Whether a tensor is large, and in a mapped file."""
    here = sys.platform == "linux" and tensor.device.type == "cpu" and tensor.is_contiguous()
    size = tensor.numel() * tensor.element_size()
    return here and size >= _WORTH and _is_file(tensor.data_ptr(), tensor.data_ptr() + size)


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
    """Whether these addresses are a file's, and none of their pages has been changed."""
    if not _is_file(begin, end):
        return False
    try:
        with open("/proc/self/pagemap", "rb", buffering=0) as table:
            table.seek(begin // mmap.PAGESIZE * 8)
            read = table.read((end - begin) // mmap.PAGESIZE * 8)
    except OSError:  # a system without it
        return False
    pages = np.frombuffer(read, np.uint64)
    changed = ((pages & _PRESENT) > 0) & ((pages & _OF_FILE) == 0) | ((pages & _SWAPPED) > 0)
    return len(read) == (end - begin) // mmap.PAGESIZE * 8 and not changed.any()


def _is_file(begin: int, end: int) -> bool:
    """Whether these addresses are one mapping of a file."""
    try:
        with open("/proc/self/maps", encoding="utf-8") as lines:
            for match in map(_HEAD.match, lines):
                if match and int(match[1], 16) <= begin and end <= int(match[2], 16):
                    return match[3] != "0"
    except OSError:  # a system without it
        pass
    return False


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)
