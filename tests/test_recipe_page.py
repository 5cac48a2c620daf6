"""docs/recipe.md says what recipe.py checks."""

import re

import pytest
from recipe_keys import PAGE, PAGES, page

from edgediff.recipe import CacheConfig


def test_the_page_is_what_the_configs_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run `python docs/recipe_keys.py`"


def test_every_section_lists_its_own_keys():
    chunks = {}
    for heading, text in re.findall(r"^##+ `?([\w. ]+)`?\n(.*?)(?=^##|\Z)", page(), re.MULTILINE | re.DOTALL):
        chunks[heading] = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert chunks["distill.cache"] == list(CacheConfig.model_fields)
    for title, (config, _) in PAGES.items():
        assert chunks[title] == list(config.model_json_schema()["properties"])


@pytest.mark.parametrize(
    "row",
    [
        "| `learning_rate` | `0.0001` | number, above 0 | of the weight update |",  # bounds, a comment behind
        "| `kd_space` | `null` | `epsilon`, `v_prediction`, `sample` | where predictions are compared; `null`: the "
        "student's own |",
        "| `ratio` | **must be given** | number, at least 0, below 1 | fraction of the teacher's channels removed |",
        "| `snapshots` | `[]` | list: whole number, above 0 | steps whose averaged weights are kept, as teachers too |",
        "| `temperature` | `[4.0, 0.1]` | 2 of: number, above 0 | first and last |",
        "| `targets` | `0` | count, such as `250k` or `1.5M`, at least 0 | how many; 0: none are kept |",
    ],
)
def test_a_row_tells_default_values_and_meaning(row):
    assert row in page().splitlines()


def test_every_link_leads_to_a_heading_of_the_page():
    headings = [line.lstrip("# ").replace("`", "") for line in page().splitlines() if line.startswith("#")]
    anchors = {heading.lower().replace(".", "").replace(" ", "-") for heading in headings}
    links = re.findall(r"\]\(#([^)]*)\)", page())
    assert links and set(links) <= anchors and len(anchors) == len(headings)


def test_inherited_keys_come_with_their_comments():
    of_generate = page().partition("## Generated data")[2].partition("\n## ")[0]
    assert (
        "| `first_seed` | `0` | whole number, at least 0 | image i is drawn from seed first_seed + i |" in of_generate
    )
