"""File names that other people wrote.

In records, documents and model folders. They may name what lies beside them, nothing else.
"""

import os
import urllib.parse

from dreamjax.errors import OutsideFolder


def inside(folder: str | os.PathLike, name: str) -> str:
    """`name` under `folder`, a folder on this machine or a URL; raises OutsideFolder where it leads out.

    Out lead an absolute name, "..", a name with a protocol, and a symbolic link to somewhere else. The file need not
    exist.
    """
    folder = os.fspath(folder)
    if not name or "\0" in name or not _encodes(name):
        raise OutsideFolder(name, "it names no file")
    if "://" in name:
        raise OutsideFolder(name, "it is a URL")
    if os.path.isabs(name):
        raise OutsideFolder(name, "it is absolute")
    if "://" in folder:
        if ".." in urllib.parse.unquote(name).split("/"):  # a store may resolve it, and a web server decodes first
            raise OutsideFolder(name, "it has a '..'")
        return f"{folder.rstrip('/')}/{name}"
    path = os.path.join(folder, name)
    if os.path.normpath(name).split(os.sep)[0] == "..":
        raise OutsideFolder(name, "it leads above")
    root = os.path.realpath(folder)
    if os.path.commonpath((root, os.path.realpath(path))) != root:
        raise OutsideFolder(name, "it is a link to somewhere else")
    return path


def _encodes(name: str) -> bool:
    """True if a file can have the name: text with a lone surrogate has no bytes."""
    try:
        return bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False
