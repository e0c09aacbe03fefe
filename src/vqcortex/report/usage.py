"""Codebook usage as a stage of a study: its tables and its page."""

from __future__ import annotations

from pathlib import Path

from vqcortex.concepts.usage import LevelUsage, Usage, check_levels, levels_table, usage_table
from vqcortex.engine.protocol import SERIAL, Engine
from vqcortex.files import write_bytes
from vqcortex.pipelines.loaded import open_tokens
from vqcortex.pipelines.progress import QUIET, Progress
from vqcortex.pipelines.settings import UsageSettings
from vqcortex.pipelines.study import Study, command_of, run_stage, stage_key
from vqcortex.pipelines.usage import UsageExhibit, check_split, gather_usage
from vqcortex.report.charts import RankChart, rank_chart, share_label
from vqcortex.report.page import Figure, environment
from vqcortex.report.words import count_of, number
from vqcortex.results import Table, save_table

PAGE = "usage.html"
LEVELS_SHOWN = 64
DEAD_LISTED = 256
# Below so many tokens per live code the plug-in perplexity is off by more than about 5 %: exp(1 / (2 * 10)).
ENOUGH = 10


def usage(settings: UsageSettings, *, progress: Progress = QUIET, engine: Engine = SERIAL) -> Path:
    """Count which codes a study's images use, and write tables and one self-contained page about it.

    Args:
        settings: Which images, and how many codes are drawn.
        progress: Told how far it is.
        engine: Where shards are counted.
    Returns:
        The page; beside it lie the tables usage and usage_levels.
    Raises:
        StudyError: The tokens are not there yet.
        ConfigError: Settings are wrong, or the split holds no images.
        TokenError: A code stands in a level that is not its own.
    """
    settings.check()
    study = Study(settings.out)
    store, model = open_tokens(study, settings.device)
    check_levels(model.levels)
    check_split(store, settings.split)
    key = stage_key("usage", settings, UsageSettings, {"tokens": study.fingerprint("tokens")})
    command = f"{command_of('usage', key['settings'])} --out STUDY"

    def work(folder: Path) -> None:
        exhibit = gather_usage(store, model, settings, progress=progress, engine=engine)
        tables = levels_table(exhibit.usage), usage_table(exhibit.usage)
        for table in tables:
            save_table(table, folder)
        write_bytes(folder / PAGE, render_usage(exhibit, *tables, command=command).encode())

    run_stage(study, key, work)
    return study.path("usage") / PAGE


def render_usage(exhibit: UsageExhibit, levels: Table, codes: Table, *, command: str) -> str:
    """The usage of a codebook as one self-contained HTML page; equal exhibits give equal pages.

    Args:
        exhibit: Figures and pictures.
        levels: The table usage_levels.
        codes: The table usage.
        command: The command line that makes the page again.
    """
    return (
        environment()
        .get_template("usage.html.j2")
        .render(
            title=f"Which codes of {exhibit.model} are used",
            answer=answer(exhibit),
            figures=key_figures(exhibit),
            notes=notes(exhibit),
            charts=charts(exhibit.usage),
            atlases=exhibit.atlases,
            why_none=exhibit.why_none,
            levels=levels,
            codes=codes,
            dead_codes=[dead_of(one) for one in exhibit.usage.levels],
            has_dead=any(one.dead for one in exhibit.usage.levels),
            command=command,
            share_label=share_label,
            LEVELS_SHOWN=LEVELS_SHOWN,
        )
    )


def answer(exhibit: UsageExhibit) -> str:
    """The page in one or two sentences."""
    one = exhibit.usage.all
    which = "the images" if exhibit.split == "all" else f"the {exhibit.split} images"
    found = f"All {one.size:,} codes occur" if not one.dead else f"{one.live:,} of {one.size:,} codes occur"
    return (
        f"{found} in {which}. Their perplexity is {number(one.perplexity, 1)}: the tokens are spread as widely as over "
        f"so many codes that all occur equally often. Half of the tokens fall to {count_of(one.half, 'code')}."
    )


def key_figures(exhibit: UsageExhibit) -> list[Figure]:
    """The header's figures, of all levels together."""
    one = exhibit.usage.all
    found = {
        "Live codes": f"{one.live:,} of {one.size:,}",
        "Dead codes": f"{one.dead:,}",
        "Perplexity": number(one.perplexity, 1),
        "Most used code": share_label(one.top_share),
        "Half of all tokens": count_of(one.half, "code"),
        "Gini": number(one.gini, 2),
        "Images": f"{one.images:,}",
        "Tokens": f"{one.tokens:,}",
    }
    if len(exhibit.usage.levels) > 1:
        found["Levels"] = str(len(exhibit.usage.levels))
    return [Figure(name=name, value=value) for name, value in found.items()]


def notes(exhibit: UsageExhibit) -> list[str]:
    """What was counted, and how far the figures go."""
    one = exhibit.usage.all
    which = "all images of the study" if exhibit.split == "all" else f"the study's {exhibit.split} images"
    counted = f"Counted: {which}, {exhibit.source}."
    found = [f"{counted} Perplexity is exp(entropy) of the counted shares. Dead means: not once in these images."]
    if one.tokens < ENOUGH * one.live:
        found.append(
            f"There are only {number(one.tokens / one.live, 1)} tokens per live code, so that perplexity comes out too "
            "low and too many codes look dead; with the first-order correction it is "
            f"{number(one.corrected_perplexity, 1)}. Count more images."
        )
    return found


def charts(usage: Usage) -> list[RankChart]:
    """A sorted curve per level, all on the same axes."""
    shown = usage.levels
    lowest = min(min(int(one.counts[-1]) / one.tokens, 1 / one.size) for one in shown)
    highest = max(one.top_share for one in shown)
    widest = max(one.size for one in shown)
    return [
        rank_chart(
            title_of(one, len(shown)), one.counts.tolist(), one.size, lowest=lowest, highest=highest, widest=widest
        )
        for one in shown
    ]


def title_of(one: LevelUsage, levels: int) -> str:
    """A level's name and how alive it is."""
    if levels == 1:
        return "Share of the tokens"
    return f"{one.name}: {one.live:,} of {one.size:,} codes live, perplexity {number(one.perplexity, 1)}"


def dead_of(one: LevelUsage) -> tuple[str, list[int], int]:
    """A level's name, its first dead codes, and how many more there are."""
    listed = one.dead_codes(DEAD_LISTED)
    return one.name, listed, one.dead - len(listed)
