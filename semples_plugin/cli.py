"""The command line: `semples demo`, `doctor`, `labels`, `patch` and `bench`; those about CAMs are in `cams.cli`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from semples_plugin.cams.cli import add_commands as add_wing_commands
from semples_plugin.version import __version__

EXIT_STATUS = (
    "Exit status: 0 done; 1 bad input, something missing, or some images failed; 2 wrong usage; 130 interrupted."
)


class _Help(argparse.HelpFormatter):
    """Says an option's default once: where there is one, and the text doesn't tell it in words."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        told = "(default" in text or not action.default or action.nargs == 0
        return text if told else f"{text} (default: %(default)s)"


class _Parser(argparse.ArgumentParser):
    """Its help says what the exit status means, as does that of each command below it."""

    def __init__(self, *, epilog: str = "", **options: Any) -> None:
        super().__init__(epilog=f"{epilog} {EXIT_STATUS}".strip(), formatter_class=_Help, **options)


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands, for `main` and for the tests."""
    parser = _Parser(
        prog="semples",
        description="SemPLeS for any weakly-supervised segmentation code base.",
        epilog="Start with `semples demo` (some four minutes on a laptop, no download), then `semples doctor`.",
    )
    parser.add_argument("--version", action="version", version=f"semples-plugin {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train, refine and compare CAMs in a small world that comes with the package",
        description="Trains a CAM network from image labels on generated scenes in which every object has its own "
        "co-occurring background, adds the three objectives of SemPLeS with a tiny CLIP, and prints what each of "
        "them changes. Writes pictures, prompts and figures to --out; stopped, the same command goes on with the seeds "
        "that are missing. Computes on one thread unless OMP_NUM_THREADS says otherwise.",
    )
    demo.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        default=[100, 101, 102, 103],
        help="one run for each; the table averages",
    )
    demo.add_argument("--ablation", action="store_true", help="all rows of the paper's Table 5; half as long again")
    demo.add_argument("--out", default="demo-out", help="folder for grid.png, results.json and the prompts")
    demo.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    demo.add_argument("--quiet", action="store_true", help="no progress bars")
    demo.set_defaults(run=_demo)

    doctor = commands.add_parser(
        "doctor",
        help="what is installed, which devices there are, whether CLIP's weights are at hand",
        description="Prints the versions, devices and CLIP that training will meet, and what to do about what is "
        "missing; weights that are there are loaded and tried. The exit status is 1 where training could not begin.",
    )
    doctor.add_argument("--clip", default="ViT-B-32-quickgelu", help="open_clip name, or local-dir:PATH")
    doctor.add_argument("--pretrained", default="openai", help="its tag, or the path of a weights file")
    doctor.set_defaults(run=_doctor)

    labels = commands.add_parser(
        "labels",
        help="make cls_labels.npy from masks, COCO's JSON or a CSV",
        description="Writes the image labels that CLIMS, IRNet and WeakTr read, and prints how many images show each "
        "class. SOURCE is a folder of PNG masks (0 background, k + 1 class k, 255 ignored), COCO's instances JSON (its "
        "classes in the order of their ids, and COCO_train2014_ taken off the images' names), or a CSV of "
        "image,class[,class...] rows, with or without a header that begins with `image`.",
    )
    labels.add_argument("source", help="masks, .json or .csv")
    labels.add_argument(
        "--classes",
        help="text file with one class name a line, in label order, or a preset (voc, coco, "
        "release-voc, release-coco with WeakTr's 90 columns); classes.txt beside SOURCE is found, JSON brings its own",
    )
    labels.add_argument("--out", default="cls_labels.npy", help="file to write; an older one stays")
    labels.add_argument(
        "--keys", choices=("name", "integer"), default="name", help="2007_000032 for WeakTr, 2007000032 for CLIMS"
    )
    labels.set_defaults(run=_labels)

    patch = commands.add_parser(
        "patch",
        help="put SemPLeS into a checkout of CLIMS, WeakTr or FMA-WSSS, or take it out",
        description="CLIMS and WeakTr: applies a patch with git, pure insertions, at the pinned commit only; where "
        "files that it touches have local changes it refuses. FMA-WSSS: writes a config for each stage.",
    )
    patch.add_argument("host", choices=("clims", "weaktr", "fma-wsss"), help="which code base")
    patch.add_argument("path", help="its git checkout")
    action = patch.add_mutually_exclusive_group()
    action.add_argument("--check", dest="action", action="store_const", const="check", help="say how things stand")
    action.add_argument("--revert", dest="action", action="store_const", const="revert", help="take the patch out")
    patch.set_defaults(run=_patch, action="apply")

    bench = commands.add_parser(
        "bench",
        help="what a step costs here, beside a straightforward one",
        description="Times the refinement step and prompt learning, with memory and operations, beside plain steps "
        "with the encoder passes of the authors' public code, and shows what each saving saves. Weights are random. "
        "A quarter of an hour on a CPU; minutes on a GPU.",
    )
    bench.add_argument("--clip", default="ViT-B-32-quickgelu", help="open_clip name of a native CLIP")
    bench.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    bench.add_argument("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of CLIP")
    bench.add_argument("--pairs", type=int, nargs="+", help="numbers of pairs (default: 1 6 16 96; up to 256 on a GPU)")
    bench.add_argument("--classes", type=int, default=20, help="K")
    bench.add_argument("--length", type=int, default=30, help="L")
    bench.add_argument("--seconds", type=float, default=30.0, help="for the repeats of each measurement")
    bench.add_argument("--out", default="bench.json", help="file for the figures")
    bench.add_argument("--quiet", action="store_true", help="no progress bar")
    bench.set_defaults(run=_bench)
    add_wing_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; the exit status is 0, or 1 for bad input, which is explained in one sentence."""
    with _lasting_streams(), warnings.catch_warnings():
        options = build_parser().parse_args(arguments)
        warnings.simplefilter("default", UserWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # some libraries' are both, and no user's business
        warnings.showwarning = lambda message, *_, **__: print(f"semples {options.command}: {message}", file=sys.stderr)
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    try:
        code = int(options.run(options) or 0)
        sys.stdout.flush()
        return code
    except (ImportError, OSError, TypeError, ValueError, KeyboardInterrupt) as error:
        interrupted = _comes_of_interrupt(error)
        print(f"semples {options.command}: {'interrupted' if interrupted else error}", file=sys.stderr)
        return 130 if interrupted else 1


def _comes_of_interrupt(error: BaseException | None) -> bool:
    """Whether it is an interrupt, or one that a library turned into an error of its own while it was imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


@contextlib.contextmanager
def _lasting_streams() -> Iterator[None]:
    """Where standard output or error is closed, or loses its reader, words are lost, and the work goes on."""
    while (number := os.open(os.devnull, os.O_RDWR)) < 3:  # else the next file would get the number of a closed stream
        pass
    os.close(number)
    with contextlib.ExitStack() as stack:
        for redirect, stream in ((contextlib.redirect_stdout, sys.stdout), (contextlib.redirect_stderr, sys.stderr)):
            lasting = _Stream(stream or stack.enter_context(open(os.devnull, "w")))  # noqa: PTH123, of Windows, too
            stack.enter_context(redirect(lasting))
            stack.callback(lasting.flush)
        yield


class _Stream:
    """A stream whose reader may leave, as that of `semples eval ... | head` does."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., Any], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            # What is left in its buffer would fail again when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            if not isinstance(error, BrokenPipeError):
                raise


def _demo(options: argparse.Namespace) -> None:
    import torch

    from semples_plugin.demo.run import run_demo

    if "OMP_NUM_THREADS" not in os.environ:  # such small layers gain little from two threads, which wait for each other
        torch.set_num_threads(1)
    run_demo(options.seeds, options.out, options.device, options.ablation, progress=not options.quiet)


def _doctor(options: argparse.Namespace) -> int:
    from semples_plugin.doctor import print_report

    return print_report(options.clip, options.pretrained)


def _labels(options: argparse.Namespace) -> None:
    from semples_plugin.data.image_labels import classes_beside, read_class_names
    from semples_plugin.data.make_labels import describe, make_labels

    classes = options.classes or (None if options.source.endswith(".json") else classes_beside(options.source))
    names = None if classes is None else read_class_names(classes)
    print(describe(*make_labels(options.source, options.out, names, options.keys)))
    style = "integers, CLIMS's" if options.keys == "integer" else "names, WeakTr's"
    print(f"wrote {options.out}; its keys are {style} style")


def _patch(options: argparse.Namespace) -> None:
    from semples_plugin.adapters.patching import patch

    print(patch(options.host, options.path, options.action))


def _bench(options: argparse.Namespace) -> None:
    from semples_plugin.bench.run import run_bench

    run_bench(
        options.out, clip=options.clip, device=options.device, precision=options.precision, pairs=options.pairs,
        classes=options.classes, length=options.length, seconds=options.seconds, progress=not options.quiet,
    )  # fmt: skip
