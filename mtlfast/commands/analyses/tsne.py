"""`mtlfast analyze tsne`: interactions, interests or tower inputs of a model in the plane."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from mtlfast.commands.analyses.trained import (
    Trained,
    add_run_arguments,
    open_run,
    say_written,
    write_figure,
)

if TYPE_CHECKING:
    from mtlfast.analysis.views import View
    from mtlfast.data import Batch

NAME = "tsne"
USAGE = "RUN [--views NAME ...] [--samples N] [--min-length N] [--seed N] [settings]"
PASSES_ON = False
HELP = "t-SNE of interaction outputs, interests or tower inputs"
DESCRIPTION = """\
Representations of random test samples in the plane (scikit-learn's t-SNE), one panel per
view. Without --views those that the model's paper shows: for DTN the modules of the first
method by group, and the first task's modules by method (Figure 5); for DTRN the interests
by task, and the task-specific bottom representations (Figures 5 and 6). `--views list`
prints all that a model has.

Writes tsne.csv (a row per point) and tsne.png. 1000 samples take about a minute per view.
"""
EXAMPLES = """\
examples:
  what the paper shows
    mtlfast analyze tsne runs/dtn-census-001

  interests of long click histories, as in DTRN's Figure 5
    mtlfast analyze tsne runs/dtrn-tenrec-001 --views interests-click --min-length 41

  which views there are
    mtlfast analyze tsne runs/dtn-census-001 --views list
"""
COLUMNS = ("view", "series", "sample", "x", "y")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    add_run_arguments(parser)
    parser.add_argument("--views", nargs="+", metavar="NAME", help="what to show, or `list`")
    parser.add_argument(
        "--samples", type=int, default=1000, metavar="N", help="random samples (default: 1000)"
    )
    parser.add_argument(
        "--min-length",
        type=int,
        default=1,
        metavar="N",
        help="for interests, only samples whose sequence is at least so long (default: 1)",
    )
    parser.add_argument(
        "--perplexity", type=float, default=30.0, metavar="X", help="of t-SNE (default: 30)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of samples and t-SNE (default: 0)"
    )


def run(options: argparse.Namespace) -> int:
    """Sample, embed, write."""
    from mtlfast.analysis import views_of
    from mtlfast.analysis.figures.embedding import draw_embeddings
    from mtlfast.training.files import write_csv

    for name, least in (("samples", 2), ("min_length", 0), ("seed", 0)):
        if getattr(options, name) < least:
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag}: expected at least {least}, found {getattr(options, name)}")
    if not options.perplexity > 0:
        raise ValueError(f"--perplexity: expected a positive number, found {options.perplexity}")
    trained = open_run(options)
    views = views_of(trained.model, trained.spec)
    if options.views == ["list"]:
        for view in views:
            print(f"{view.name:24} {view.title}{'' if view.published else '  (not by default)'}")
        return 0
    panels: dict[str, Any] = {}
    rows: list[list[Any]] = []
    drawn: dict[int | None, Batch] = {}  # what does not depend on a behavior shows the same samples
    for view in _chosen(views, options.views):
        if view.behavior not in drawn:
            drawn[view.behavior] = _sample(trained, view, options)
        series = _embed(trained, view, drawn[view.behavior], options)
        panels[view.title] = series
        rows += [
            [view.name, name, i, float(x), float(y)]
            for name, points in series.items()
            for i, (x, y) in enumerate(points)
        ]
    paths = [trained.output / "tsne.csv", trained.output / "tsne.png"]
    write_csv(paths[0], COLUMNS, rows)
    write_figure(paths[1], draw_embeddings(panels, title=trained.title))
    say_written(paths)
    return 0


def _chosen(views: tuple[View, ...], names: list[str] | None) -> list[View]:
    if names is None:
        return [view for view in views if view.published]
    by_name = {view.name: view for view in views}
    unknown = [name for name in names if name not in by_name]
    if unknown:
        raise ValueError(
            f"--views: expected some of {', '.join(by_name)}, found {', '.join(unknown)}"
        )
    return [by_name[name] for name in dict.fromkeys(names)]


def _sample(trained: Trained, view: View, options: argparse.Namespace) -> Batch:
    from mtlfast.analysis import sample_rows

    progress = trained.progress(trained.batches.samples, "sampling")
    try:
        return sample_rows(
            trained.batches,
            options.samples,
            seed=options.seed,
            behavior=view.behavior,
            min_length=0 if view.behavior is None else options.min_length,
            on_samples=progress.advance,
        )
    finally:
        progress.close()


def _embed(
    trained: Trained, view: View, samples: Batch, options: argparse.Namespace
) -> dict[str, Any]:
    """Points of each series of one view."""
    from mtlfast.analysis import tsne, view_vectors

    series = view_vectors(
        trained.model,
        view,
        samples,
        batch_size=trained.restored.config.batch_size,
        device=trained.device,
        autocast=trained.autocast,
    )
    count = sum(len(vectors) for _, vectors in series)
    print(f"{view.title}: {len(series)} x {len(samples):,} = {count:,} vectors", flush=True)
    points = tsne(series, perplexity=options.perplexity, seed=options.seed)
    return {name: places for (name, _), places in zip(series, points, strict=True)}
