"""The explorer as a person meets it: a real daemon, and its pages in a headless Chromium."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fsdecloud.crypto import sign
from fsdecloud.crypto.wallet import address_of
from fsdecloud.ledger.network import NetworkDocument, network_id
from fsdecloud.ledger.transactions import decode_tx, sign_register, tx_id
from fsdecloud.wire.agentapi import Empty
from fsdecloud.wire.ledgerapi import ServicesInfo
from tests.cluster.chromium import Chromium, find_chromium
from tests.cluster.ledgernet import Daemon, anchor, quick_network, wait_until

VOLUME = bytes([2]) * 32
PEER = bytes([5]) * 32
HOSTILE = '"><img/src=x/onerror="window.broken=1"><script>window.broken=1</script>'
PAGES = ("#/", "#/block/1", "#/waiting", "#/peers", "#/deals", "#/before/3")
HEADING = "document.querySelector('main h1') && document.querySelector('main').getAttribute('aria-busy') === 'false'"


class Ledger:
    """A daemon that shows pages, and what is recorded in it."""

    def __init__(self, home: Path) -> None:
        self.document: NetworkDocument = quick_network()
        self.daemon = Daemon(home, self.document)
        self.daemon.start("--explorer", "0", "--mine-duty", "50")
        self.url = self.daemon.call("services", Empty(), ServicesInfo).explorer
        self.sequence = 0

    def record(self) -> bytes:
        """Have a block made; return the transaction in it."""
        self.sequence += 1
        tx = anchor(self.document, VOLUME, self.sequence)
        height = self.daemon.status().height
        self.daemon.submit(tx)
        wait_until(lambda: self.daemon.status().height > height, "a block")
        return tx


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path / "home")
    try:
        made.daemon.submit(sign_register(network_id(made.document), PEER, HOSTILE, 3 << 30, 1, bits=4))
        wait_until(lambda: made.daemon.status().height == 1, "the registration is in a block")
        yield made
    finally:
        made.daemon.close()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Chromium]:
    program = find_chromium()
    if program is None:
        pytest.skip("there is no Chromium here: apt-get install chromium-headless-shell")
    with Chromium(program, tmp_path / "profile") as made:
        yield made


def visit(browser: Chromium, url: str, page: str, word: str) -> None:
    """Go to a page and wait until it is there."""
    browser.open(url + page)
    there = f"document.querySelector('main').dataset.page === {json.dumps(page)}"
    browser.wait(f"document.querySelector('main') && {HEADING} && {there}", page)
    browser.wait(f"document.querySelector('main').innerText.includes({json.dumps(word)})", f"{page}: {word}")


def test_the_pages_in_a_browser(ledger: Ledger, browser: Chromium) -> None:
    tx = ledger.record()
    # ---- what is on the pages, and that it follows the chain without being asked
    visit(browser, ledger.url, "", "Height 2")
    browser.wait("document.getElementById('live').textContent === 'live'")
    assert browser.run("document.getElementById('name').textContent") == "test"
    ledger.record()
    browser.wait("document.querySelector('main h1').textContent === 'Height 3'", "it follows the chain")
    assert browser.run("document.querySelectorAll('tbody tr').length") == 3
    assert browser.run("document.querySelectorAll('svg.chart[role=img][aria-label]').length") == 2
    browser.run("document.querySelector('tbody a').click()")
    browser.wait(f"{HEADING} && document.querySelector('main h1').textContent === 'Block 3'")
    assert browser.run("document.title").startswith("Block")
    assert browser.run("document.activeElement.id") == "main", "who reads with the keyboard goes on there"

    # ---- searching
    identity = tx_id(decode_tx(tx)).hex()
    address = address_of(sign.public_key(PEER))
    for query, heading in (("2", "Block 2"), (identity, "Transaction: anchor"), (address, "Key")):
        browser.type("#query", query)
        browser.wait(f"{HEADING} && document.querySelector('main h1').textContent === {json.dumps(heading)}")
    browser.type("#query", "f" * 64)
    browser.wait("document.querySelector('main h1').textContent === 'Not found'")
    assert browser.run("document.querySelector('main [role=alert]').textContent.startsWith('no block')")

    # ---- other people's words are text
    visit(browser, ledger.url, "#/peers", HOSTILE)
    row = browser.run("document.querySelector('main tbody tr').innerText")
    assert "block 1, " in row, "when it was registered, and how long ago that is"
    assert "nothing" in row, "the price"
    assert "not declared" in row
    visit(browser, ledger.url, f"#/key/{sign.public_key(PEER).hex()}", HOSTILE)
    visit(browser, ledger.url, "#/block/1", HOSTILE)
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("window.broken === undefined")

    # ---- a phone, both schemes, and what assistive programs are told
    for width, scheme in ((360, "dark"), (1280, "light")):
        browser.resize(width, 740, phone=width < 500)
        browser.prefer(scheme)
        for page in PAGES:
            visit(browser, ledger.url, page, "")
            assert browser.run("document.documentElement.scrollWidth") <= width, (page, width)
            assert browser.run(CONTRAST) >= 4.5, (page, scheme)
            tree = browser.tree()
            roles = {role for role, _ in tree}
            assert {"banner", "navigation", "main", "contentinfo", "search", "heading", "status"} <= roles, page
            assert ("searchbox", "Height, id or key") in tree
            for role in ("link", "button", "searchbox", "heading", "columnheader"):
                assert all(name for found, name in tree if found == role), (page, role)
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.prefer("dark")
    assert browser.run("getComputedStyle(document.body).backgroundColor") != background
    if where := os.environ.get("FSDECLOUD_PICTURES"):
        take_pictures(browser, ledger, Path(where))

    # ---- by hand: stopping the updates, and a daemon that goes and comes back
    visit(browser, ledger.url, "#/", "Height 3")
    browser.run("document.getElementById('pause').click()")
    browser.wait("document.getElementById('live').textContent === 'paused'")
    ledger.record()
    assert browser.run("document.querySelector('main h1').textContent") == "Height 3"
    browser.run("document.getElementById('pause').click()")
    browser.wait("document.querySelector('main h1').textContent === 'Height 4'")
    assert not [c for c in browser.complaints if "/api/search" not in c], "only the search that found nothing"
    ledger.daemon.stop()
    browser.wait("document.getElementById('live').textContent === 'not connected'")
    assert "Height 4" in browser.text(), "what was shown stays"
    ledger.daemon.start("--explorer", ledger.url.removeprefix("http://").rstrip("/"))
    browser.wait("document.getElementById('live').textContent === 'live'")
    ledger.record()
    browser.wait("document.querySelector('main h1').textContent === 'Height 5'")
    ledger.daemon.stop()


def take_pictures(browser: Chromium, ledger: Ledger, where: Path) -> None:
    """For eyes: FSDECLOUD_PICTURES names the directory."""
    for width, height, scheme in ((1280, 900, "light"), (1280, 900, "dark"), (390, 844, "dark"), (390, 844, "light")):
        browser.resize(width, height, phone=width < 500)
        browser.prefer(scheme)
        for page in PAGES:
            visit(browser, ledger.url, page, "")
            browser.picture(where / f"{width}-{scheme}-{page[2:].replace('/', '-') or 'home'}.png")


CONTRAST = """(() => {
  const parse = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = (rgb) => {
    const [r, g, b] = rgb.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (; element; element = element.parentElement) {
      const color = parse(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color.slice(0, 3);
    }
    return [255, 255, 255];
  };
  let worst = 21;
  for (const element of document.querySelectorAll('body *')) {
    if (![...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim())) continue;
    const style = getComputedStyle(element);
    if (style.visibility === 'hidden' || !element.getClientRects().length) continue;
    const pair = [light(parse(style.color).slice(0, 3)), light(behind(element))].sort((a, b) => b - a);
    worst = Math.min(worst, (pair[0] + 0.05) / (pair[1] + 0.05));
  }
  return worst;
})()"""
"""The least contrast of any text on the page with what is behind it (WCAG 2.2, 1.4.3: at least 4.5)."""
