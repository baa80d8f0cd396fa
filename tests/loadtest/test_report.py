"""The report: complete, self-contained, escaped, and whole whatever a run lacks."""

from __future__ import annotations

import copy
import functools
import importlib.resources
import json
import math
import re
from html.parser import HTMLParser
from typing import Any

import matplotlib as mpl
import pytest

from dragoman_loadtest.report import render, words

NASTY = "<script>alert('$x_1$ & \"y\"')</script>"
VOID = {"meta", "br", "link", "img", "input", "hr"}


def distribution(scale: float, count: int = 400) -> dict[str, float]:
    quantiles = {"p50": 1.0, "p90": 2.0, "p95": 2.5, "p97": 3.0, "p99": 4.0, "p99.9": 6.0}
    times = {name: scale * factor for name, factor in quantiles.items()}
    return {"count": float(count), "mean": 1.2 * scale, **times, "max": 7.0 * scale}


REQUESTS = {
    "sent": 420,
    "answered": 400,
    "failed": 10,
    "open_at_the_end": 0,
    "cancelled_on_purpose": 10,
    "read_slowly": 0,
    "truncated": 0,
}
RATES = {
    "offered": 93.3,
    "answered": 88.9,
    "goodput": 80.1,
    "sentences": 88.9,
    "source_tokens": 1800.0,
    "output_tokens": 1900.0,
}
SLOWEST = {
    "request": 7,
    "line": 3,
    "text": "the slow one",
    "at": 1.5,
    "latency": 0.28,
    "queue": math.nan,
    "decode": 0.1,
    "code": "OPEN",
}
TIMELINE = [
    {
        "second": 0.0,
        "requests": 90.0,
        "errors": 0.0,
        "p50": 0.04,
        "p97": 0.12,
        "p99": 0.16,
        "queue_depth": 0.0,
    },
    {"second": 1.0, "requests": 0.0, "errors": 0.0, "slots_in_use": 8.0},
    {
        "second": 2.0,
        "requests": 95.0,
        "errors": 9.0,
        "p50": 0.05,
        "p97": 0.14,
        "p99": 0.2,
        "slots_in_use": 3.0,
    },
]
CHECK = {
    "objective": "p97<250ms",
    "verdict": "pass",
    "requests": 410,
    "over": 2,
    "allowed_share": 0.030000000000000027,
    "over_share": 2 / 410,
}
CLIENT = {
    "valid": True,
    "reasons": [],
    "send_lag": distribution(0.0002),
    "client_cpu_share": 0.05,
    "processes": 1,
    "dropped": 0,
    "killed_clients": 0,
}
CURVE = [[1.0 - 10.0**-nines, 1.0 + nines] for nines in (0.0, 0.5, 1.0, 2.0, 2.6)]


def distributions(scale: float) -> dict[str, Any]:
    latency, long = distribution(scale), distribution(2 * scale)
    parts = {"queue": 0.1, "encode": 0.12, "decode": 0.5, "server": 0.8, "elsewhere": 0.1}
    return {
        "times": {
            "latency": latency,
            "service": distribution(0.9 * scale),
            "ttft": distribution(scale / 4),
            "tpot": distribution(scale / 20),
        },
        "curves": {
            "latency": [[share, scale * value] for share, value in CURVE],
            "service": [[share, 0.9 * scale * value] for share, value in CURVE],
        },
        "token_gap": distribution(scale / 20),
        "server_times": {name: distribution(part * scale) for name, part in parts.items()},
        "by_length": [
            {"from": 1, "to": 8, "requests": 200, "latency": latency, "ttft": {}, "tpot": {}},
            {"from": 65, "to": None, "requests": 220, "latency": long, "ttft": {}, "tpot": {}},
        ],
    }


def figures(scale: float = 0.04, **changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "loop": "open",
        "seconds": 4.5,
        "warm_up_seconds": 3.0,
        "was_steady": True,
        "stopped_early": False,
        "interrupted": False,
        "drain_seconds": 0.2,
        "requests": REQUESTS,
        "errors": {"by_code": {"RESOURCE_EXHAUSTED": 10}, "messages": {"RESOURCE_EXHAUSTED: no room": 10}},
        "rates": RATES,
        **distributions(scale),
        "slowest": [SLOWEST],
        "corpus_tokens": distribution(20.0),
        "occupancy": {"steps": 4123.0, "mean_step_seconds": 0.0021, "padded_rows_share": 0.11, "slots": 8.0},
        "metrics_error": "",
        "timeline": TIMELINE,
        "objectives": [CHECK],
        "verdict": "pass",
        "self_check": CLIENT,
    }
    return copy.deepcopy(found | changes)


ANSWERS: dict[str, Any] = {
    "compared": 400,
    "identical": 399,
    "identical_share": 399 / 400,
    "different": [
        {"request": 5, "line": 2, "source": "a b c", "golden": "eins zwei drei", "loaded": "eins vier drei"},
    ],
    "against_golden": {"bleu": 99.5, "chrf": 99.7, "bleu_signature": "s", "chrf_signature": "s"},
}


def base(kind: str, **rest: Any) -> dict[str, Any]:
    return {
        "schema": 1,
        "kind": kind,
        "made_at": "2026-11-25T01:24:53+00:00",
        "settings": {
            "target": {"endpoint": "127.0.0.1:50051", "tls": False},
            "phases": {"drain_seconds": 10.0},
        },
        "corpus": {"name": "corpus.en", "texts": 100, "sha256": "ab" * 32},
        "model": {"summary": {"name": "toy", "version": "1", "source_languages": ["en", "fr"]}},
        "machine": {"cpu": "some CPU", "cpus": 2, "memory_bytes": 25276063744},
        "versions": {"dragoman": "0.1.0"},
        **rest,
    }


def single(**changes: Any) -> dict[str, Any]:
    return base("run", figures=figures(**changes), answers=copy.deepcopy(ANSWERS))


def plain(**changes: Any) -> dict[str, Any]:
    """A run without what pictures are drawn from: drawing takes the time of these tests."""
    return single(**{"curves": {}, "timeline": [], "by_length": [], "server_times": {}} | changes)


def sweep(**changes: Any) -> dict[str, Any]:
    points = [{"rate": rate, "figures": figures(0.02 * rate)} for rate in (1.0, 4.0, 9.0)]
    points[-1]["figures"]["self_check"] |= {
        "valid": False,
        "reasons": ["a client process used 97% of a core"],
    }
    found = {"points": points, "knee": 3.5, "peak_rate": 6.25, "objective": "p97<250ms"}
    return base("sweep", sweep=found | changes)


def trial(stage: str, rate: float, met: bool, **changes: Any) -> dict[str, Any]:
    verdict = "pass" if met else "fail"
    times = {"p50": 0.01 * rate, "p97": 0.03 * rate, "p99": 0.05 * rate}
    return (
        {"stage": stage, "rate": rate, "met": met, "verdict": verdict, "seconds": 5.0, "requests": 50}
        | times
        | changes
    )


def peak(last: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    trials = [
        trial("double", 4.0, True),
        trial("double", 8.0, False),
        trial("bisect", 6.25, True, verdict="undecided"),
        trial("confirm", 6.25, True),
    ]
    found = {
        "rate": 6.25,
        "goodput": 6.1,
        "objectives": "p97<250ms,errors<1%",
        "confirmations": 1,
        "confirmed": 1,
        "trials": trials,
    }
    return base("peak", peak=found | changes, figures=last or figures())


KINDS = {"run": single, "sweep": sweep, "peak": peak}


@functools.cache
def rendered(kind: str) -> str:
    return render(KINDS.get(kind, nothing_sent)())


def nothing_sent() -> dict[str, Any]:
    """What `figures` makes of a measurement without a request."""
    empty: dict[str, Any] = {metric: {} for metric in ("latency", "service", "ttft", "tpot")}
    check = {
        "objective": "p97<250ms",
        "verdict": "undecided",
        "requests": 0,
        "over": 0,
        "allowed_share": 0.03,
    }
    return single(
        seconds=0.0,
        requests=dict.fromkeys(REQUESTS, 0),
        errors={"by_code": {}, "messages": {}},
        rates={},
        times=empty,
        curves={"latency": [], "service": []},
        token_gap={},
        server_times={"queue": {}, "encode": {}, "decode": {}, "server": {}, "elsewhere": {}},
        by_length=[],
        slowest=[],
        corpus_tokens={},
        occupancy={},
        timeline=[],
        objectives=[check | {"over_share": None}],
        verdict="undecided",
        self_check={"valid": False, "reasons": ["no request was sent"], "send_lag": {}},
    ) | {"answers": {"compared": 0, "identical": 0, "identical_share": None, "different": []}}


class Page(HTMLParser):
    """A page as a browser reads it: attributes, and tags that fit each other."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", self.html.partition("</style>")[2]))


@pytest.fixture(scope="module", params=[*KINDS, "nothing sent"])
def page(request: pytest.FixtureRequest) -> Page:
    return Page(rendered(request.param))


def test_every_tag_is_closed(page: Page) -> None:
    assert page.open == []
    assert page.html.startswith("<!DOCTYPE html>")


def test_asks_no_host_for_anything(page: Page) -> None:
    assert not {"script", "link", "img", "iframe", "object", "embed", "image"} & set(page.tags)
    loads = [
        v for name in ("src", "href", "srcset", "xlink:href", "action", "data") for v in page.values(name)
    ]
    loads += re.findall(r"url\(([^)]*)\)", page.html)
    assert all(value.startswith("#") for value in loads)
    assert "@import" not in page.html
    assert not re.search(r"https?://", page.html)


def test_ids_are_unique_and_references_reach_them(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = set(re.findall(r'(?:href="|url\()#([^")]+)', page.html))
    assert references <= set(ids)


def test_pictures_come_wide_and_narrow_and_say_what_they_show(page: Page) -> None:
    figures_shown = page.tags.count("figure")
    assert page.tags.count("svg") == 2 * figures_shown
    assert [v for tag, name, v in page.attributes if (tag, name) == ("svg", "class")] == [
        "wide",
        "narrow",
    ] * figures_shown
    assert page.values("role").count("img") == page.tags.count("svg")
    assert page.tags.count("figcaption") == figures_shown
    assert all(
        tag != "svg" or value.endswith(".") for tag, name, value in page.attributes if name == "aria-label"
    )


def test_pictures_have_the_colours_and_fonts_of_the_page(page: Page) -> None:
    drawn = page.html.partition("</style>")[2]
    assert not re.search(r"#[0-9a-f]{6}\b", drawn)
    assert "DejaVu" not in page.html
    used = set(re.findall(r"var\((--[\w-]+)\)", page.html))
    assert used <= set(re.findall(r"(--[\w-]+):", page.html))
    assert page.html.count("prefers-color-scheme: dark") == 1


@pytest.mark.parametrize(
    ("kind", "shown"),
    [
        ("run", ["percentiles", "timeline", "by-length", "where"]),
        ("sweep", ["curve", "throughput", "failures"]),
        ("peak", ["trials", "percentiles", "timeline", "by-length", "where"]),
    ],
)
def test_each_kind_has_its_pictures_in_order(kind: str, shown: list[str]) -> None:
    html = rendered(kind)
    assert re.findall(r'<figure class="card" id="([^"]*)">', html) == shown


def test_a_run_shows_its_tables_and_tiles() -> None:
    text = Page(rendered("run")).text
    for part in (
        "Objectives",
        "Times",
        "By length",
        "Errors",
        "The slowest requests",
        "How full the server was",
    ):
        assert part in text
    for part in ("Machine", "Versions", "Model", "Corpus", "23.5 GiB", "en, fr", "ttft p50", "tpot p50"):
        assert part in text
    assert "identical 99.8% 399 of 400 answers" in text
    assert "errors 10 2.4% of the requests" in text
    assert "offered 93.3 /s open loop" in text


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("curves", 'id="percentiles"'),
        ("timeline", 'id="timeline"'),
        ("by_length", 'id="by-length"'),
        ("server_times", 'id="where"'),
        ("occupancy", "How full the server was"),
        ("objectives", "<h2>Objectives"),
        ("slowest", "The slowest requests"),
        ("errors", "<h2>Errors"),
        ("times", "latency p50</dt>"),
        ("rates", "goodput</dt>"),
        ("self_check", "The load generator itself"),
    ],
)
def test_what_is_missing_is_left_out(missing: str, gone: str) -> None:
    run = plain()
    run["figures"][missing] = figures()[missing]
    assert gone in render(run)
    run["figures"][missing] = type(run["figures"][missing])()
    assert gone not in render(run)
    del run["figures"][missing]
    assert gone not in render(run)


@pytest.mark.parametrize(
    "run", [{}, {"kind": "run", "figures": None, "answers": None}, {"figures": {}, "model": {}}]
)
def test_an_empty_run_is_a_page(run: dict[str, Any]) -> None:
    page = Page(render(run))
    assert page.tags.count("figure") == 0
    assert page.open == []


def test_without_answers_no_section_of_answers() -> None:
    assert 'id="answers"' in rendered("run")
    assert 'id="answers"' not in render(plain() | {"answers": None})
    assert 'id="answers"' not in rendered("nothing sent")


def test_answers_that_differ_are_marked_where_they_differ() -> None:
    html = rendered("run")
    assert "eins <mark>zwei</mark> drei" in html
    assert "eins <mark>vier</mark> drei" in html


def test_long_answers_are_shortened_where_they_agree() -> None:
    run = plain()
    shared = " ".join(f"w{i}" for i in range(100))
    run["answers"]["different"][0] |= {"golden": f"{shared} alt", "loaded": f"{shared} neu"}
    html = render(run)
    assert "w11 […] w88" in html
    assert "<mark>neu</mark>" in html


def _poisoned(value: Any) -> Any:
    """Every text replaced by one that is dangerous; keys stay, as they are ours."""
    if isinstance(value, dict):
        return {key: _poisoned(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_poisoned(part) for part in value]
    return NASTY if isinstance(value, str) else value


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_of_a_run_is_escaped(kind: str) -> None:
    run = _poisoned(KINDS[kind]())
    run["figures"] = (plain()["figures"] if kind == "peak" else run.get("figures") or {}) | {
        "metrics_error": NASTY,
        "errors": {"by_code": {NASTY: 1}, "messages": {NASTY: 1}},
        "self_check": {"valid": False, "reasons": [NASTY]},
    }
    page = Page(render(run | {"departures": [NASTY]}))
    assert "script" not in page.tags
    assert "<script" not in page.html
    assert "&lt;script&gt;" in page.html
    assert page.open == []


@pytest.mark.parametrize(
    ("verdict", "word", "sentence"),
    [
        ("pass", "PASS", "meets every objective"),
        ("fail", "FAIL", "does not meet p97&lt;250ms and errors&lt;1%"),
        ("undecided", "UNDECIDED", "Too few requests to tell whether p97&lt;250ms and errors&lt;1% holds"),
        (None, "MEASURED", "No objective was set"),
    ],
)
def test_the_verdict_is_the_first_thing_said(verdict: str | None, word: str, sentence: str) -> None:
    check = CHECK | {"verdict": verdict}
    checks = [check, check | {"objective": "errors<1%"}]
    html = render(plain(verdict=verdict, objectives=checks if verdict else []))
    assert f"<strong>{word}</strong>" in html
    assert sentence in html
    assert ("p97&lt;250ms: 0.5% of 410 requests missed it, 3% may" in html) is (verdict is not None)


def test_an_invalid_run_says_why_and_judges_nothing() -> None:
    client = CLIENT | {"valid": False, "reasons": ["a client process used 97% of a core"]}
    html = render(plain(self_check=client))
    assert "<strong>INVALID</strong>" in html
    assert "<li>a client process used 97% of a core</li>" in html
    assert "meets every objective" not in html


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"loop": "closed"}, "hides how long a stalled server keeps users waiting"),
        ({"interrupted": True}, "Interrupted after 4.5 s"),
        ({"was_steady": False}, "Not steady: latency still moved"),
        ({"was_steady": False, "warm_up_seconds": 0.0}, "Not steady: there was no warm-up"),
        ({"stopped_early": True}, "Stopped early, after 4.5 s"),
        ({"metrics_error": "no route"}, "could not be read: no route"),
    ],
)
def test_what_limits_a_run_is_said_before_its_figures(changes: dict[str, Any], said: str) -> None:
    assert said not in rendered("run")
    html = render(plain(**changes))
    assert 0 < html.find(said) < html.find('class="tiles"')


def test_a_sweep_of_a_closed_loop_says_so_once() -> None:
    run = sweep()
    for point in run["sweep"]["points"]:
        point["figures"]["loop"] = "closed"
    assert render(run).count("hides how long a stalled server keeps users waiting") == 1


def test_a_sweep_marks_knee_peak_and_invalid_runs() -> None:
    text = Page(rendered("sweep")).text
    assert "knee 3.5/s" in text
    assert "peak 6.25/s" in text
    assert "Invalid at 9/s" in text
    assert "Hollow dots are invalid." in text
    bare = Page(render(sweep(knee=None, peak_rate=None, objective=None))).text
    assert "knee 3.5/s" not in bare


def test_a_peak_and_no_peak() -> None:
    found = rendered("peak")
    assert "carries 6.25 requests per second within p97&lt;250ms and errors&lt;1%" in found
    assert "1 of 1 confirming runs agree" in found
    assert "The last run of the search" in found
    none = render(peak(plain()["figures"], rate=None, goodput=None, confirmed=0))
    assert "<strong>NO PEAK</strong>" in none
    assert 'id="trials"' in none


def test_a_search_whose_trials_have_no_times_is_drawn() -> None:
    bare = dict.fromkeys(("p50", "p97", "p99"))
    html = render(peak(plain()["figures"], trials=[trial("double", 4.0, False, **bare)], rate=None))
    assert 'id="trials"' in html
    assert "dashed: " not in html


@pytest.mark.parametrize(
    ("objective", "drawn"),
    [("p97<250ms", True), ("service.p99<1s", True), ("errors<1%", False), ("p97 quickly", False)],
)
def test_bounds_are_drawn_where_they_can_be(objective: str, drawn: bool) -> None:
    check = CHECK | {"objective": objective}
    html = render(plain(objectives=[check], curves=figures()["curves"]))
    assert ("shaded corner" in html) is drawn


def test_the_same_run_gives_the_same_page() -> None:
    assert render(single()) == rendered("run")


def test_rendering_leaves_the_run_and_matplotlib_as_they_were() -> None:
    run, settings = single(), dict(mpl.rcParams)
    before = json.dumps(run)
    render(run)
    assert json.dumps(run) == before
    assert dict(mpl.rcParams) == settings


def test_an_hour_second_by_second_stays_light() -> None:
    one = TIMELINE[0]
    points = [one | {"second": float(s), "p50": 0.04 + 0.01 * (s % 7)} for s in range(3600)]
    assert len(render(plain(timeline=points, seconds=3600.0))) < 2_000_000


def test_the_template_and_the_style_are_beside_the_code() -> None:
    package = importlib.resources.files("dragoman_loadtest.report")
    assert package.joinpath("page.html").is_file()
    assert package.joinpath("page.css").is_file()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0 s"),
        (0.00042, "420 µs"),
        (2.5e-7, "0.25 µs"),
        (0.023021, "23 ms"),
        (0.99951, "1 s"),
        (1.6794, "1.68 s"),
        (83.2, "83.2 s"),
        (150.0, "2 min 30 s"),
        (600.0, "10 min"),
        (None, "—"),
        (math.nan, "—"),
        (math.inf, "—"),
    ],
)
def test_seconds_read_well(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0%"),
        (1.0, "100%"),
        (0.030000000000000027, "3%"),
        (0.02136, "2.1%"),
        (0.9999, "99.99%"),
        (0.00002, "0.002%"),
        (1 / 3e9, "0%"),
        (None, "—"),
    ],
)
def test_shares_are_never_rounded_to_all_or_nothing(value: float | None, text: str) -> None:
    assert words.share(value) == text
