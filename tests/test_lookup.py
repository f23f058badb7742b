"""Look-ups: syntax, rendering, URLs."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orqo import lookup
from orqo.lookup import LookupFailed, LookupSyntaxError, Reference, Unreadable

# A busy machine is no finding.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
ROOTS: dict[str, Any] = {
    "input": {"a": {"b": [10, {"c": "deep"}]}, "text": "hé llo", "n": 3, "none": None, "a.b": "dotted", "0": "zero"},
    "stages": {"cut": {"output": Unreadable("the output was cut; raise max_output"), "outcome": "ok"}},
    "secrets": {"BASE": "https://hooks.example.com"},
}
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)
STEPS = st.sampled_from([".a", ".0", ".b-c", ".12", '["a.b"]', '[""]', '["é}"]', ".é"])
LOOKUPS = st.builds(
    lambda root, steps, optional: "${" + root + "".join(steps) + ("?" if optional else "") + "}",
    st.sampled_from(["input", "stages", "secrets", "nowhere"]),
    st.lists(STEPS, max_size=3),
    st.booleans(),
)
TEMPLATES = st.lists(LOOKUPS | st.sampled_from(["$${", "$", "}", "https://", "/", "?", "#", "..", "%2e", "text"]), max_size=6).map("".join)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("${input.a.b.0}", 10),
        ("${input.a.b.1.c}", "deep"),
        ("${input.a}", {"b": [10, {"c": "deep"}]}),
        ("${input.none}", None),
        ("${input.gone?}", None),
        ("${input.gone.further?}", None),
        ('${input["a.b"]}', "dotted"),
        ("${input.0}", "zero"),
        ("n=${input.n}", "n=3"),
        ("${input.text}${input.n}", "hé llo3"),
        ("x${input.a.b}", 'x[10,{"c":"deep"}]'),
        ("x${input.none}", "xnull"),
        ("x${input.gone?}", "x"),
        ("$${input.n}", "${input.n}"),
        ("$$${input.n}", "$${input.n}"),
        ("$ {input.n} }", "$ {input.n} }"),
        ("", ""),
        ({"k": ["${input.n}", {"${input.n}": 1}]}, {"k": [3, {"${input.n}": 1}]}),
    ],
)
def test_render_gives_what_the_template_means(template: Any, expected: Any) -> None:
    assert lookup.render(template, ROOTS) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [("${input.n}", "3"), ("${input.none?}", ""), ("${input.gone?}", ""), ("${input.none}", "null"), ("${input.a.b.1}", '{"c":"deep"}')],
)
def test_render_text_always_gives_text(template: str, expected: str) -> None:
    assert lookup.render_text(template, ROOTS) == expected


@pytest.mark.parametrize(
    ("template", "path", "said"),
    [
        ("${input.a.x}", "input.a.x", "input.a has no key 'x'"),
        ("${input.a.b.7}", "input.a.b.7", "input.a.b has 2 items, counted from 0, so no item 7"),
        ("${input.text.x}", "input.text.x", "input.text is text"),
        ("${input.a.b.x}", "input.a.b.x", "input.a.b is a list"),
        ("${gone.x}", "gone.x", "the context has no key 'gone'"),
        ('${input["x.y"].z}', 'input["x.y"].z', "input has no key 'x.y'"),
        ("${stages.cut.output}", "stages.cut.output", "raise max_output"),
        ("${stages.cut.output.x?}", "stages.cut.output.x", "raise max_output"),
        ("${stages}", "stages", "raise max_output"),
    ],
)
def test_failed_lookup_says_what_is_absent_and_where(template: str, path: str, said: str) -> None:
    with pytest.raises(LookupFailed) as failed:
        lookup.render(template, ROOTS)

    assert failed.value.path == path
    assert said in failed.value.detail


MISSPELT = ["${", "${}", "${ input }", "${input.}", "${.a}", "${input[0]}", "${input['a']}", "${{input}}", "${a|b}", '${a["\\x"]}']


@pytest.mark.parametrize("text", MISSPELT)
def test_bad_syntax_is_told_with_the_right_one(text: str) -> None:
    with pytest.raises(LookupSyntaxError) as fault:
        lookup.check_syntax(text)

    assert "write ${input.a.b}" in fault.value.detail


def test_references_are_of_values_and_not_of_keys() -> None:
    found = list(lookup.references({"${input.key}": ["${input.a.0?}", 3, '${stages["x"].output} ${secrets.S}']}))

    assert found == [Reference("input", ("a", 0), True), Reference("stages", ("x", "output"), False), Reference("secrets", ("S",), False)]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://h/${input.text}/x", "https://h/h%C3%A9%20llo/x"),
        ("https://h/x?q=${input.a}&n=${input.n}", "https://h/x?q=%7B%22b%22%3A%5B10%2C%7B%22c%22%3A%22deep%22%7D%5D%7D&n=3"),
        ("${secrets.BASE}/x/${input.text}", "https://hooks.example.com/x/h%C3%A9%20llo"),
        ("${secrets.BASE}", "https://hooks.example.com"),
        ("https://h:${input.n}/", "https://h:3/"),
        ("https://h/v..${input.n}", "https://h/v..3"),
        ("https://h/a/../b", "https://h/a/../b"),
    ],
)
def test_url_lookups_are_encoded_from_the_path_on(template: str, expected: str) -> None:
    assert lookup.render_url(template, ROOTS) == expected


CLIMBING = ["https://h/${input.up}/x", "https://h/x/%2e${input.gone?}", "https://h/.${input.gone?}/x", "https://h/%2E${input.dot}"]


@pytest.mark.parametrize("template", CLIMBING)
def test_lookup_cannot_climb_in_a_path(template: str) -> None:
    with pytest.raises(LookupFailed, match="lead elsewhere"):
        lookup.render_url(template, {"input": {"up": "..", "dot": "."}})


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/${input.x}", False),
        ("https://h?${input.x}", False),
        ("https://h#${input.x}", False),
        ("${secrets.BASE}/${input.x}", False),
        ("${secrets.BASE}", False),
        ("https://${secrets.H}:${secrets.P}/", False),
        ("https://h/?u=://${input.x}", False),
        ("https://h${input.x}", True),
        ("https://h${input.x}/p", True),
        ("https://h:${input.x}/p", True),
        ("https://${input.x}@h/p", True),
        ("https://h\\${input.x}", True),
        ("${input.x}", True),
        ("${input.x}/p", True),
        ("${input.x}://h/p", True),
        ("${secrets.S}://${input.h}/p", True),
        ("${secrets.BASE}${input.x}", True),
    ],
)
def test_influences_host_looks_before_the_path(url: str, expected: bool) -> None:
    assert lookup.influences_host(url) is expected


def test_deeply_nested_value_fails_the_lookup_and_nothing_else() -> None:
    deep: Any = "end"
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(LookupFailed, match="nested too deeply"):
        lookup.render_text("x${input}", {"input": deep})


@CALM
@given(TEMPLATES, st.dictionaries(st.sampled_from(["input", "stages", "secrets"]), JSON_VALUES))
def test_rendering_raises_nothing_but_lookup_failed(template: str, roots: dict[str, Any]) -> None:
    for rendered in (lookup.render, lookup.render_text, lookup.render_url):
        try:
            value = rendered(template, roots)
        except LookupFailed as failed:
            assert failed.detail and failed.path
        else:
            json.dumps(value)


@CALM
@given(st.text(st.sampled_from('${}.[]"?aé0\\ ')), JSON_VALUES)
def test_any_text_is_rendered_or_fails_as_a_lookup(text: str, value: Any) -> None:
    try:
        lookup.check_syntax(text)
    except LookupSyntaxError:
        with pytest.raises(LookupFailed):
            lookup.render(text, {"a": value})


@CALM
@given(st.text())
def test_percent_encoded_lookup_stays_one_segment(text: str) -> None:
    try:
        url = lookup.render_url("https://h/a/${input}/b", {"input": text})
    except LookupFailed:
        assert text in (".", "..")
    else:
        assert url.count("/") == 5 and "?" not in url and "#" not in url
