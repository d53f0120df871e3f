"""The playground in a real browser, asking the shipped pair on a real server, which `sglang serve` starts."""

import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from transformers import AutoTokenizer

from benchmarks import launch, text
from benchmarks.demo.document import document
from specprefill_sgl.playground import explained, page, prompt
from tests.support.browser import browser, playground
from tests.support.server import command, sparse_options

LAUNCH_SERVER = [sys.executable, "-m", "sglang.launch_server"]
SGLANG_SERVE = [sys.executable, "-c", "from sglang.cli.main import main; main()", "serve"]  # what its console script does
TOKENS = 3000
RATIO = 0.2
SLOWEST_S = 5  # of what takes a tenth of a second on an idle machine; a quadratic page takes minutes
EVIL = "<img src=x onerror=\"document.title='evil'\"></script><script>document.title='evil'</script> & <b>bold</b> "


@pytest.fixture(scope="module")
def chromium():
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(launch.TARGET)


@pytest.fixture(scope="module")
def asked(tokenizer):
    return document(lambda piece: len(tokenizer.encode(piece)), TOKENS)


@pytest.fixture(scope="module")
def server(chromium, tmp_path_factory):
    options = {"selection": "best", "keep_ratio": RATIO, "heads": launch.HEADS, "layers": 2, "method": "draft,early-layers"}
    options = command(launch.TARGET, *sparse_options(launch.DRAFT, **options))[len(LAUNCH_SERVER) :]
    with launch.serve([*SGLANG_SERVE, *options], tmp_path_factory.mktemp("server") / "server.log") as running:
        yield running


@pytest.fixture(scope="module")
def url(server):
    with playground(server) as running:
        yield running


@pytest.fixture
def opened(chromium, url):
    """The page, once it knows its server; every error of its script fails the test."""
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    found, errors = context.new_page(), []
    found.on("pageerror", lambda error: errors.append(str(error)))
    found.goto(url)
    found.locator("#server", has_text="127.0.0.1").wait_for()
    yield found
    context.close()
    assert errors == []


def _ask(opened, prose=None, question=None, tokens=6):
    """Fill in what is given, ask, wait until both answers are there."""
    if prose is not None:
        opened.fill("#document", prose)
        opened.fill("#question", question)
        opened.fill("#tokens", str(tokens))
    opened.click("#go")
    _wait(opened)


def _wait(opened):
    opened.locator("#verdict", has_text="First token").wait_for(timeout=120_000)
    assert opened.locator("#problem").is_hidden()


def _said(opened, which):
    return opened.locator(f"#{which} .answer").text_content().strip()


def _kept(opened):
    return [int(one) for one in opened.eval_on_selector_all("#text span:not(.d)", "all => all.map(one => one.dataset.at)")]


def test_ask(opened, asked):
    question, answer = asked.questions[2]
    _ask(opened, asked.prose, question)
    assert _said(opened, "sparse").startswith(answer.strip())
    assert _said(opened, "dense").startswith(answer.strip())
    assert all(float(opened.locator(f"#{which} .number").text_content()) > 0 for which in ("sparse", "dense"))
    assert opened.locator("#text").text_content().endswith(f"{asked.prose}\n\n{question}")
    kept = [opened.locator(f'#text span[data-at="{at}"]') for at in _kept(opened)]
    assert answer.strip() in "".join(one.text_content() for one in kept)
    assert 0 < len(kept) < 0.3 * opened.locator("#text span").count()
    kept[0].hover()
    detail = opened.locator("#detail").text_content()
    assert "score" in detail
    assert "asked for by" in detail


def test_slide(opened, asked):
    """The slider shows about what another keep ratio keeps; asking again says exactly, and does not ask for dense again."""
    sent = []
    opened.on("request", lambda request: sent.append(request.post_data_json) if request.url.endswith("/ask") else None)
    _ask(opened, asked.prose, asked.questions[0][0])
    before = _kept(opened)
    opened.focus("#ratio")
    for _ in range(10):
        opened.keyboard.press("ArrowLeft")
    opened.locator("#summary", has_text="Preview at 0.10").wait_for()
    preview = set(_kept(opened))
    assert 0.3 * len(before) < len(preview) < 0.7 * len(before)
    _ask(opened)
    opened.locator("#summary", has_text="tokens read").filter(has_not_text="Preview").wait_for()
    exact = set(_kept(opened))
    assert len(preview & exact) >= 0.95 * max(len(preview), len(exact))
    assert [one["sparse"] for one in sent] == [True, False, True]
    assert [one.get("keep_ratio") for one in sent] == [RATIO, None, 0.1]


def test_switch_method(opened, asked):
    assert opened.locator("#method option").all_text_contents() == ["draft", "early-layers"]
    opened.select_option("#method", "early-layers")
    _ask(opened, asked.prose, asked.questions[1][0])
    assert "early-layers" in opened.locator("#sparse .facts").text_content()


def test_what_returned_is_marked(opened, asked):
    """Several keys at a keep ratio for one: the answer asks for more, and what returns has a mark of its own."""
    opened.select_option("#revive", "1")
    opened.focus("#ratio")
    opened.keyboard.press("Home")
    _ask(opened, asked.prose, "The pass keys for amber, lantern and winter are", tokens=16)
    assert opened.locator("#text .r").count() > 0
    returned = int(re.search(r"([\d,]+) returned", opened.locator("#sparse .facts").text_content())[1].replace(",", ""))
    assert f"{returned} of them returned" in opened.locator("#summary").text_content()


def test_stop_ends_the_request_on_the_server(opened, asked, server):
    """Of an answer of some thousand tokens, which would take a minute."""
    opened.fill("#document", asked.prose)
    opened.fill("#tokens", "4096")
    opened.click("#go")
    opened.locator("#sparse .answer", has_text=re.compile(".")).wait_for(timeout=60_000)
    assert _running(server) == 1
    opened.click("#stop")
    deadline = time.monotonic() + 10
    while _running(server):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert opened.locator("#go").is_enabled()
    assert opened.locator("#problem").is_hidden()


def _running(server):
    return requests.get(server + "/v1/loads?include=core", timeout=60).json()["loads"][0]["num_running_reqs"]


def test_keyboard_only(opened, asked):
    """From the address bar to a chunk's score without a mouse."""
    question, answer = asked.questions[3]
    opened.evaluate("prose => { document.getElementById('document').value = prose }", asked.prose)  # a paste, focus left alone
    order = []
    for _ in range(11):
        opened.keyboard.press("Tab")
        order.append(opened.evaluate("document.activeElement.id"))
        if order[-1] == "question":
            opened.keyboard.type(question)
        if order[-1] == "tokens":
            opened.keyboard.type("6")
    assert order[1:] == ["open", "document", "question", "ratio", "method", "selection", "tokens", "revive", "chat", "go"]
    opened.keyboard.press("Enter")
    _wait(opened)
    assert _said(opened, "sparse").startswith(answer.strip())
    while opened.evaluate("document.activeElement.id") != "text":
        opened.keyboard.press("Tab")
    opened.keyboard.press("n")
    first = opened.locator("#said").text_content()
    assert first.startswith("kept, chunk")
    opened.keyboard.press("ArrowRight")
    assert opened.locator("#said").text_content() != first
    opened.keyboard.press("End")
    total = opened.locator("#text span").count()
    assert f"chunk {total - 1}" in opened.locator("#said").text_content()
    assert opened.locator(f'#text span[data-at="{total - 1}"]').is_visible()


def test_shows_markup_as_text(opened):
    _ask(opened, EVIL * 20, EVIL)
    assert EVIL * 20 in opened.locator("#text").text_content()
    assert opened.locator("#text img, #text b, #text script").count() == 0
    assert opened.title() == "Speculative Prefill: playground"


def test_a_prompt_that_is_too_long_is_refused_openly(opened):
    opened.fill("#document", "word " * 100_000)
    opened.click("#go")
    opened.locator("#problem", has_text=re.compile("The server answered.*context length")).wait_for(timeout=60_000)
    assert opened.locator("#go").is_enabled()


def test_the_first_questions_may_come_at_once(server):
    """Whoever asks before the tokenizer is loaded waits for it."""
    with playground(server) as fresh, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: requests.get(f"{fresh}/server", timeout=60), range(4)))
    assert [one.status_code for one in answers] == [200] * 4


def test_a_server_that_is_down(chromium):
    with playground(f"http://127.0.0.1:{launch.free_port()}") as url:
        found = chromium.new_page()
        found.goto(url)
        found.locator("#server.down", has_text="Is the server running?").wait_for()
        found.fill("#question", "Anybody there?")
        found.click("#go")
        found.locator("#problem", has_text="Is the server running?").wait_for()
        assert found.locator("#go").is_enabled()
        found.close()


def test_a_document_of_100_000_tokens_stays_quick(chromium, tokenizer, tmp_path):
    """The same page with what it is to show, as `explain --html` writes it."""
    prose = " ".join(text.sentences("moby_dick", held_out=True))
    read = prompt.read(tokenizer, (EVIL + prose) * (1 + 100_000 // len(tokenizer.encode(prose))))
    chunks = -(-len(read.ids) // 8)
    assert len(read.ids) >= 100_000
    scores = [(at * 7919 % chunks) / chunks for at in range(chunks)]
    positions = [position for at in range(chunks) if scores[at] > 0.8 for position in range(8 * at, 8 * at + 8)]
    reply = {"applied": True, "method": "draft", "prompt_tokens": len(read.ids), "chunk_size": 8, "draft_ms": 1.0}
    reply |= {"keep_ratio_used": 0.2, "revived_tokens": 0, "scores": scores, "positions": positions}
    (tmp_path / "page.html").write_text(page.standalone(explained.plain(explained.chunks(read, reply, []), reply)))
    found = chromium.new_page()
    start = time.monotonic()
    found.goto((tmp_path / "page.html").as_uri())
    found.locator("#summary", has_text="tokens read").wait_for()
    found.focus("#ratio")
    found.keyboard.press("Home")
    found.locator("#summary", has_text="Preview at 0.01").wait_for()
    found.focus("#text")
    found.keyboard.press("End")
    assert found.locator(f'#text span[data-at="{chunks - 1}"]').is_visible()
    assert time.monotonic() - start < SLOWEST_S
    assert found.title() == "Speculative Prefill: playground"
    assert found.locator("#text").text_content() == read.text
    found.close()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{}", {"content-type": "text/plain"}, 415),  # what a foreign page may send without leave
        (b"{}", {"content-type": "application/json"}, 400),
        (
            b'{"document": "", "question": "", "sparse": true, "url": "http://elsewhere"}',
            {"content-type": "application/json"},
            400,
        ),
        (b"{}", {"content-type": "application/json", "host": "elsewhere.example"}, 400),
    ],
)
def test_only_the_page_can_ask(url, body, headers, status):
    assert requests.post(f"{url}/ask", data=body, headers=headers, timeout=30).status_code == status


@pytest.mark.parametrize("path", ["/generate", "/flush_cache", "/server_info", "/v1/models", "/../playground.py"])
def test_is_no_open_proxy(url, path):
    assert requests.get(url + path, timeout=30).status_code == 404
    assert requests.post(url + path, json={}, timeout=30).status_code == 404
