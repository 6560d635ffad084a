"""Kinds of things that a host's run needs.

Paths are below the checkout, unless they begin with one of these: `{voc}` and `{coco}`, the data; `{hub}` and `{clip}`,
the folders into which torch.hub and OpenAI's CLIP download.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Package:
    """A package that the host's extra doesn't bring.

    Attributes:
        module: what is imported.
        use: what for.
        install: the command that brings it.
        optional: whether training does without it.
    """

    module: str
    use: str
    install: str
    optional: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """Weights, in a file of `torch.save` or `torch.jit.save`.

    Attributes:
        path: of the file, or of a folder of them.
        use: what it is.
        source: where it is published.
        fetched: whether the host downloads it by itself.
        optional: whether training does without it.
        digest: the first digits of its SHA-256, where its publisher names them.
    """

    path: str
    use: str
    source: str
    fetched: bool = False
    optional: bool = False
    digest: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder of images or masks.

    Attributes:
        path: of the folder.
        whole: files that the published data set has in it.
        source: where it is published.
        optional: whether training does without it.
    """

    path: str
    whole: int
    source: str
    optional: bool = False


@dataclass(frozen=True)
class Labels:
    """A file of image labels.

    Attributes:
        path: of the file.
        columns: of the labels.
        keys: "integer" (2007000032), "name", or "row": an array `[images, columns]` in the order of the ids.
        columns_in: file and regular expression that say in the checkout itself how many columns it takes, where users
            are told to edit that.
        made: whether the host makes the file where it is missing.
        how: how it is made, or where it comes from.
    """

    path: str
    columns: int
    keys: str
    columns_in: tuple[str, str] = ("", "")
    made: bool = False
    how: str = ""


@dataclass(frozen=True)
class ImageList:
    """A list of images, with the files that the host opens for each line of it.

    Attributes:
        path: of a text file, or of COCO's instances in JSON.
        use: what the host does with it.
        image: path of the image, with `{name}`, or with `{first}`, the line's first column; "" where none is read.
        mask: path of the mask, with `{name}`, or `{second}`; "" where none is read.
        labels: where the image labels are.
    """

    path: str
    use: str
    image: str = ""
    mask: str = ""
    labels: Labels | None = None


@dataclass(frozen=True)
class DataSet:
    """What a recipe on VOC or COCO needs.

    Attributes:
        title: the data set's name.
        root: where the host looks for it, below the checkout; "" where an option of the host says it.
        option: that option, with its script.
        folders, lists: of images.
        judged: further lists, of the images on which a recipe judges what was trained.
        hint: what else to know where images are missing.
        packages: beyond those of the host.
        checkpoints: beyond those of the host.
    """

    title: str
    root: str
    option: str
    folders: tuple[Folder, ...]
    lists: tuple[ImageList, ...]
    judged: tuple[ImageList, ...] = ()
    hint: str = ""
    packages: tuple[Package, ...] = ()
    checkpoints: tuple[Checkpoint, ...] = ()


@dataclass(frozen=True)
class Needs:
    """All that a host needs: its data sets by "voc" and "coco"."""

    data: dict[str, DataSet]
    checkpoints: tuple[Checkpoint, ...] = ()
    packages: tuple[Package, ...] = ()


OPENAI = "https://openaipublic.azureedge.net/clip/models"
VIT_B_32 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
VIT_B_16 = "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"
VOC_IMAGES = "VOCtrainval_11-May-2012.tar of http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
VOC_MASKS = "https://www.dropbox.com/s/oeu149j8qtbs1x0/SegmentationClassAug.zip"
COCO_IMAGES = "train2014.zip of https://cocodataset.org/#download"
