from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from vqcortex.exhibit import Exhibit
from vqcortex.report.page import key_figures, names_first, options_of, render_page, search_steps, training_charts
from vqcortex.results import Table

MEGABYTE = 1_000_000
NASTY = """</script><script>alert("1")</script><img src=x onerror='a()'> & {{ 7 * 7 }}"""


class Reader(HTMLParser):
    """Collects tags and attributes, and checks that tags close in order."""

    VOID = frozenset({"meta", "img", "input", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def read(page: str) -> Reader:
    reader = Reader()
    reader.feed(page)
    return reader


@pytest.fixture(scope="module")
def page(exhibit: Exhibit) -> str:
    return render_page(exhibit)


@pytest.fixture(scope="module")
def reader(page: str) -> Reader:
    return read(page)


@pytest.fixture(scope="module")
def bare_page(bare: Exhibit) -> str:
    return render_page(bare)


def test_the_same_exhibit_gives_the_same_page(bare: Exhibit, bare_page: str):
    assert render_page(bare) == bare_page


@pytest.mark.slow
def test_a_page_as_large_as_the_demo_stays_under_15_megabytes(demo: Exhibit):
    assert len(demo.concepts) == len(demo.searches) == 10
    assert len(demo.clusters) == 12
    assert len(render_page(demo).encode()) < 15 * MEGABYTE


def test_photographs_stay_under_15_megabytes_too(exhibit: Exhibit):
    def large(pixels: np.ndarray, side: int) -> np.ndarray:
        coarse = pixels.repeat(-(-side // pixels.shape[-2]), -3).repeat(-(-side // pixels.shape[-2]), -2)
        return coarse[..., :side, :side, :]

    some = exhibit.concepts[0]
    codes = tuple(replace(code, patches=large(code.patches, 48)) for code in some.codes)
    search = exhibit.searches[0]
    one = replace(
        exhibit,
        concepts=(replace(some, images=large(some.images, 256), codes=codes),),
        searches=(
            replace(
                search,
                before=large(search.before, 256),
                after={name: large(value, 256) for name, value in search.after.items()},
            ),
        ),
        tables={},
    )
    assert len(render_page(one).encode()) < 15 * MEGABYTE / 10  # a tenth of the demo's concepts and pairs


def test_the_page_is_well_formed_and_every_link_inside_it_leads_somewhere(reader: Reader):
    assert reader.open == []
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for attributes in reader.all("a")]
    assert len(links) > 20
    assert {link for link in links if (link and link[1:] not in ids) or not link} == set()


def test_nothing_is_fetched_from_anywhere(page: str, reader: Reader):
    without_pictures = re.sub(r"base64,[A-Za-z0-9+/=]+", "", page)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", without_pictures)
    assert {source["src"][:11] for source in reader.all("img") if source["src"]} == {"data:image/"}
    assert not reader.all("link")
    assert not [one for one in reader.all("script") if one]


def test_every_picture_has_a_text_or_is_marked_as_decoration(reader: Reader):
    assert all("alt" in picture for picture in reader.all("img"))
    assert all("aria-label" in drawing or drawing.get("aria-hidden") == "true" for drawing in reader.all("svg"))


def test_whatever_a_concept_is_called_it_stays_text(named: Callable[[str], Exhibit]):
    page = render_page(named(NASTY))
    assert "alert(" in page  # it is shown
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert len(read(page).all("script")) == 2
    assert "{{ 7 * 7 }}" in page


def test_notes_commands_and_facts_are_text_too(bare: Exhibit):
    hostile = replace(
        bare,
        title=NASTY,
        notes=(NASTY,),
        model={NASTY: NASTY},
        stages=({"stage": NASTY, "command": NASTY, "settings": {NASTY: NASTY}, "versions": {NASTY: NASTY}},),
    )
    page = render_page(hostile)
    assert "<script>alert" not in page
    assert "<img src=x" not in page


def test_every_part_of_the_study_is_on_the_page(page: str, exhibit: Exhibit):
    assert page.count('class="panel"') == len(exhibit.concepts)
    assert page.count('class="search ') == len(exhibit.searches)
    assert page.count('id="cluster-') == len(exhibit.clusters)
    assert page.count('class="overlay crisp"') == sum(len(one.images) for one in exhibit.concepts)
    assert all(f"<span>vqcortex {stage['stage']}</span> <span>--out study</span>" in page for stage in exhibit.stages)
    assert all(note in page for note in exhibit.notes)


def test_pairs_of_tokens_are_a_matrix_with_pictures_where_the_concept_has_them(
    page: str, exhibit: Exhibit, bare: Exhibit
):
    assert page.count('class="pairs"') == len(exhibit.concepts) - 1
    assert page.count("There are not two tokens of this concept to test together.") == 1
    assert page.count(">+4 ▲</td>") == page.count(">−8 ✕</td>") == len(exhibit.concepts) - 1
    assert "as many random codes of the same images +1" in page
    first, code = exhibit.concepts[0], exhibit.concepts[0].codes[0]
    tables = {"interactions": exhibit.tables["interactions"]}
    shown = render_page(replace(bare, concepts=(replace(first, codes=(replace(code, code=2),)),), tables=tables))
    assert shown.count("An example of code 2") == 1
    assert "Its tokens together" not in render_page(bare)


def test_a_study_of_which_little_is_done_says_what_is_missing(bare_page: str):
    for what in ("cluster", "codebook search", "image-level evidence", "concept-level evidence"):
        assert f"This study holds no {what} yet." in bare_page
    assert "no judge has checked them yet" in bare_page
    assert "this study holds no verdicts yet" in bare_page
    assert read(bare_page).open == []


def test_a_study_without_concepts_is_a_page_too(bare: Exhibit):
    assert "This study holds no concept yet." in render_page(replace(bare, concepts=()))


def test_a_concept_without_images_codes_or_swaps_is_shown_as_such(bare: Exhibit):
    one = bare.concepts[0]
    shape = one.importance.shape[1:]
    empty = replace(
        one,
        image_ids=(),
        images=one.images[:0],
        importance=np.zeros((0, *shape), np.float32),
        codes=(),
        best_swaps=(),
    )
    page = render_page(replace(bare, concepts=(empty,)))
    assert "There is no example image of this concept." in page
    assert "No concept token was found." in page
    assert "No swap was verified for this concept." in page


def test_a_code_without_patches_or_numbers_is_still_listed(bare: Exhibit):
    concept = bare.concepts[0]
    code = replace(concept.codes[0], code=4711, numbers={}, patches=concept.codes[0].patches[:0])
    page = render_page(replace(bare, concepts=(replace(concept, codes=(code,)),)))
    assert "4711" in page
    assert "no example" in page


def test_numbers_that_are_none_leave_a_dash(bare: Exhibit):
    concept = bare.concepts[0]
    numbers = {"count": 3.0, "share": 0.5, "low": float("nan"), "high": float("nan"), "effect": float("nan")}
    code = replace(concept.codes[0], numbers=numbers)
    page = render_page(replace(bare, concepts=(replace(concept, codes=(code,)),)))
    assert "50 %" in page
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", page), re.IGNORECASE)


def test_the_key_figures_are_the_exhibits_own(exhibit: Exhibit):
    assert {one.name: one.value for one in key_figures(exhibit)} == {
        "Model": "zoo:fashion",
        "Images": "3,000 generated",
        "Codes": "256",
        "Concepts": "4",
        "Extractor accuracy": "92.4 %",
    }


def test_key_figures_that_are_unknown_are_left_out(exhibit: Exhibit):
    assert [one.name for one in key_figures(replace(exhibit, model={}, extractor={}))] == ["Concepts"]


def test_a_training_of_one_epoch_has_no_curve(exhibit: Exhibit):
    assert len(training_charts(exhibit.history)) == 2
    assert training_charts(exhibit.history[:1]) == []


def test_the_page_says_better_and_worse_without_relying_on_colour(page: str):
    assert '<span class="verdict worse" role="img" title="n = ' in page
    for sign in ("▲", "▼", "○"):
        assert sign in page


def test_without_scripts_every_concept_is_visible_and_the_first_evidence_too(reader: Reader):
    assert not any("hidden" in one for tag, one in reader.tags if one.get("class") == "panel")
    shown = [one for _, one in reader.tags if one.get("class") == "variant" and "hidden" not in one]
    assert [one["data-level"] for one in shown] == ["image", "concept", "codebook"]


def test_a_search_from_scratch_comes_last_and_has_no_region(exhibit: Exhibit):
    one = exhibit.searches[0]
    steps = search_steps(replace(one, after={"from_scratch": one.before[:3], **one.after}))
    assert [step.arm for step in steps] == [
        "untouched",
        "token_selection",
        "embedding_optimisation",
        "random_codes",
        "from_scratch",
    ]
    assert [step.is_free for step in steps] == [False] * 4 + [True]


def test_a_command_may_break_before_each_option_and_loses_nothing():
    command = "vqcortex search --pairs 'Bag>Coat' --step-factor 0.1"
    assert options_of(command) == ["vqcortex search", "--pairs 'Bag>Coat'", "--step-factor 0.1"]
    assert " ".join(options_of(command)) == command


def test_a_table_is_shown_with_its_names_first(exhibit: Exhibit):
    stability = exhibit.tables["search_stability"]
    mixed = Table("mixed", dict(reversed(stability.columns.items())), stability.rows)
    assert list(names_first(mixed)) == ["strategy", "pair", "jaccard"]
