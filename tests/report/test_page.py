"""The page tells the numbers it was given, is well-formed, and loads nothing."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from report_examples import capability, example, summary

from known import known
from seawall.artifacts.evaluation import Rate
from seawall.errors import ArtifactError
from seawall.report import GroupRow, render_model_card, render_report

VOID = {"meta", "input", "link", "br", "hr", "img"}


class Page(HTMLParser):
    """Checks that tags balance; keeps attributes, text by element id, and the `<data>` values of each table row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: dict[str, list[float]] = {}
        self.words: list[str] = []
        self._row: list[float] | None = None
        self._heading: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self._row, self._heading = [], []
        if tag == "data" and self._row is not None:
            self._row.append(float(dict(attrs)["value"] or "nan"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag == "tr" and self._row:
            self.rows["".join(self._heading).strip()] = self._row

    def handle_data(self, data: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.words.append(data)
        if "th" in self.open:
            self._heading.append(data)


@pytest.fixture(scope="module")
def html() -> str:
    return render_report(example())


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


def test_the_results_table_holds_exactly_the_inputs(page: Page) -> None:
    names = ["Role play", "Nested fiction", "Persuasion", "Escalation", "Forced opening", "Reversed text"]
    names += ["Plain refusal", "Over-refusal", "Benign compliance"]
    for name, row in zip(names, example().groups, strict=True):
        assert row.after is not None
        assert row.change is not None
        assert page.rows[name] == [row.before.rate, row.after.rate, row.change.difference]
    assert page.rows["Loss on gold answers"] == [2.5541, 2.5617, 2.5617 - 2.5541]


def test_validation_rates_stand_in_a_table(page: Page) -> None:
    rounds = example().rounds
    assert page.rows["0 (before)"] == list(rounds[0].values())
    assert page.rows["1"] == list(rounds[1].values())
    assert page.rows["2 (kept)"] == list(rounds[2].values())


def test_rates_are_written_with_their_intervals(page: Page) -> None:
    words = " ".join(page.words)
    for row in example().groups:
        assert f"{100 * known(row.before):.1f}%" in words
        assert f"{100 * row.before.low:.1f}–{100 * row.before.high:.1f}%" in words


def test_ids_are_unique_and_every_reference_leads_somewhere(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    names = ("aria-labelledby", "for")
    targets = [value for _, name, value in page.attributes if name in names]
    targets += [value[1:] for tag, name, value in page.attributes if (tag, name) == ("a", "href")]
    assert set(targets) <= set(page.ids)


def test_every_picture_and_control_has_a_name(page: Page, html: str) -> None:
    assert html.count("<svg") == len(re.findall(r'<svg [^>]*role="img" aria-label="[^"]+"', html))
    assert [value for tag, name, value in page.attributes if (tag, name) == ("html", "lang")] == ["en"]
    for control in ("f-group", "f-change", "f-text"):
        assert re.search(rf'<label[^>]*>[A-Z][a-z]+ <(select|input) id="{control}"', html)


def test_nothing_is_loaded(page: Page, html: str) -> None:
    loading = {"src", "srcset", "action", "background", "poster", "xlink:href", "style"}
    assert [one for one in page.attributes if one[1] in loading or one[1].startswith("on")] == []
    assert all(value.startswith("#") for _, name, value in page.attributes if name == "href")
    assert not re.search(r"url\(|@import|@font-face|https?://", html)


def test_the_policy_lets_in_this_style_and_this_script_only(html: str) -> None:
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)
    policy = policy.replace("&#39;", "'").replace("&#43;", "+")
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    for tag in ("style", "script"):
        (body,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert directives[f"{tag}-src"] == f"'sha256-{digest}'"


def test_the_recipe_and_the_versions_are_there(html: str) -> None:
    assert "lr: 5.0e-05" in html
    assert "environment.packages.transformers" in html
    assert "5.23.0" in html
    assert "ab12" * 16 in html


def test_the_same_inputs_give_the_same_page(html: str) -> None:
    assert render_report(example()) == html


def test_parts_that_a_run_lacks_are_left_out() -> None:
    bare = example(pairs=[], dropped=[], updates=[], rounds=[], drift=[], samples=[])
    bare = replace(bare, experts=None, manifest={}, recipe={}, summary={**bare.summary, "parity": None})
    page = Page(render_report(bare))
    assert not {"pairs", "experts", "repair", "routing", "samples"} & set(page.ids)
    assert "was not compared" in " ".join(page.words)


def test_a_group_measured_only_before_is_shown_as_such() -> None:
    only = GroupRow("attack:origami", False, Rate(0.5, 0.3, 0.7, 40))
    page = Page(render_report(example(groups=[*example().groups, only])))
    assert page.rows["Origami"] == [0.5]
    assert "not evaluated" in " ".join(page.words)


def test_a_group_of_which_nothing_was_scored_shows_no_rate() -> None:
    nothing = GroupRow("attack:origami", False, Rate(None, 0.0, 1.0, 40, 40))
    page = Page(render_report(example(groups=[*example().groups, nothing])))
    assert " ".join(page.words).count("none scored") == 2  # in the table and the chart


def test_the_card_shows_no_rate_either() -> None:
    first, *others = example().groups
    assert first.after is not None
    lost = replace(first, after=replace(first.after, unscored=first.after.n))
    rows = [lost, *others]
    assert render_model_card(example(groups=rows, summary=summary(rows, 60, 480))).count("none scored") == 1


def test_a_summary_that_says_otherwise_is_refused() -> None:
    inputs = example()
    other = summary(inputs.groups, 60, 480)
    other["attacks"]["role_play"]["after"]["rate"] = 0.25
    with pytest.raises(ArtifactError, match=r"attack:role_play after the repair; got a rate of 0.0"):
        render_report(replace(inputs, summary=other))


def test_drift_of_another_number_of_layers_is_refused() -> None:
    with pytest.raises(ArtifactError, match="got 3 layers; expected 15 layers"):
        render_report(example(drift=[0.1] * 3))


def test_a_map_as_large_as_the_largest_recipe_is_well_formed() -> None:
    html = render_report(example(48, 128))
    Page(html)
    assert len(html) < 2_000_000


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("frequency", "were selected by how often they are used."),
        ("mass", "how much more gate weight it gets"),
        ("random", "were selected at random, as a control."),
        ("sensitivity", "one expert: how far the loss of refusing an attack moves with its gate weights."),
    ],
)
def test_the_map_says_what_was_measured_and_how_experts_were_chosen(method: str, said: str) -> None:
    page = Page(render_report(example(recipe={"select": {"method": method}})))
    assert said in " ".join("".join(page.words).split())


def test_attack_success_by_length_stands_in_a_table() -> None:
    inputs = example()
    rate = {"rate": 0.25, "low": 0.1, "high": 0.4, "n": 40, "unscored": 3}
    both = {"before": {**rate, "rate": 0.75, "unscored": 0}, "after": rate}
    by_length = {"walrus_talk": {"32": both, "128": {**both, "after": {**rate, "rate": 0.5}}}}
    made = Page(render_report(replace(inputs, summary={**inputs.summary, "attacks_by_length": by_length})))
    assert made.rows["Walrus talk"] == [0.75, 0.25, 0.75, 0.5]
    words = " ".join(made.words)
    assert "32 tokens" in words
    assert "0 / 3 unscored" in words
    assert "h-lengths" not in Page(render_report(inputs)).ids


def test_scores_of_capability_are_a_section_of_the_table() -> None:
    shown = example()
    scores = capability(mmlu="non-inferior", few="unclear")
    html = render_report(replace(shown, summary={**shown.summary, "capability": scores}))
    rows = Page(html).rows
    assert rows["mmlu acc"] == [0.6, 0.6, 0.0]
    assert rows["few acc"] == pytest.approx([0.6, 0.55, -0.05])
    assert "non-inferior, p = 0.040" in html
    assert "excludes a loss of 2.0 points" in html
    assert "lm-evaluation-harness" not in render_report(shown)
    card = render_model_card(replace(shown, summary={**shown.summary, "capability": scores}))
    assert "| few acc | 60.0% | 55.0% | −5.0 (−15.0 to +5.0), unclear | 250 |" in card
