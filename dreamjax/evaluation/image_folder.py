"""The images of benchmarks, found by name below a folder, as benchmarks leave them in folders of many kinds:

COCO    val2014/COCO_val2014_000000000042.jpg, by file name or number
TextVQA train_images/0054c91397f2fe05.jpg       VizWiz     val/VizWiz_val_00000000.jpg
GQA     images/n161313.jpg                      ScienceQA  test/4/image.png
MME     artwork/images/10002.jpg                MM-Vet     images/v1_0.png
"""

import collections
import os
import re
from collections.abc import Iterable

from etils import epath

from dreamjax.document import Image
from dreamjax.errors import SourceError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


def images_beside(path: epath.Path) -> str:
    """The folder of the images that a file names, where none is given: images/ beside it, else its own."""
    near = path.parent / "images"
    return str(near if near.is_dir() else path.parent)


def image_files(folder: epath.PathLike) -> list[str]:
    """The paths of all image files below a folder, relative to it, in order."""
    return sorted(
        os.path.relpath(os.path.join(root, name), folder)
        for root, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS)
    )


class ImageFolder:
    """The image files below a folder, found by name.

    With or without ending and folders, or by the number that a name ends with.
    """

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.root = self.folder.parent if self.folder.is_file() else self.folder
        self._by_stem = collections.defaultdict(list)
        self._by_number = collections.defaultdict(list)
        for path in image_files(self.root):
            stem = os.path.splitext(os.path.basename(path))[0]
            self._by_stem[stem].append(path)
            number = re.search(r"(?<!\d)(\d{6,})$", stem)  # COCO writes numbers with twelve digits
            if number:
                self._by_number[number[1].lstrip("0")].append(path)

    def find(self, name: str | bytes) -> Image | None:
        """The image as an input of the user's turn; None without a file of this name. Bytes are an image file."""
        source = name if isinstance(name, bytes) else self._path(name)
        return None if source is None else Image(source, is_target=False, role="user")

    def _path(self, name: str) -> epath.Path | None:
        *folders, base = name.split("/")
        stem, ending = os.path.splitext(base) if base.lower().endswith(ENDINGS) else (base, "")
        paths = self._by_stem.get(stem) or (self._by_number.get(stem.lstrip("0"), []) if stem.isdecimal() else [])
        # MME's artwork/1.jpg is artwork/images/1.jpg.
        paths = [path for path in paths if set(folders) <= set(path.split("/"))]
        paths = [path for path in paths if path.endswith(ending)] or paths
        if len(paths) > 1:
            raise SourceError(
                f"{self.folder}: {name} may be {paths[0]} or {paths[1]}; leave the pictures of one split there"
            )
        return self.root / paths[0] if paths else None

    def require(self, names: Iterable[str | bytes]) -> dict[str | bytes, Image]:
        """{name: image} of all names; raises SourceError, with the count, where some are missing."""
        images, missing = {}, []
        for name in dict.fromkeys(names):
            image = self.find(name)
            if image is None:
                missing.append(str(name))
            else:
                images[name] = image
        if missing:
            raise SourceError(
                f"{self.folder}: {len(missing)} of {len(images) + len(missing)} pictures are missing, the first is "
                f"{missing[0]}; --images names their folder"
            )
        return images
