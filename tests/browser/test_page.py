"""The live view as a person sees it, in headless Chromium."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from tests.browser.conftest import Page
from tests.conftest import ALICE, BOB, CHANNEL, GUILD, MakeClient, encrypted, pair, signalling_of
from tests.test_flight import recorded
from voicegw.adapters.system import System
from voicegw.client import VoiceClient
from voicegw.media.sources import ToneSource
from voicegw.server import LocalSignalling, VoiceServer
from voicegw.testing.chaos import Chaos
from voicegw.view.record import played
from voicegw.view.server import View, serve_view

pytestmark = [pytest.mark.browser, pytest.mark.timeout(110)]

MANY = 200


@pytest.fixture
def system() -> System:
    return System()


@pytest.fixture
async def view(system: System) -> AsyncIterator[View]:
    async with await serve_view(system=system) as served:
        yield served


def lit_for(states: dict[str, str]) -> set[str]:
    """What must stand out: each state, and its parent."""
    return {f"{machine}.{name}" for machine, state in states.items() for name in (state, state.partition(".")[0])}


async def test_a_running_call_is_lit_and_followed_to_its_end(
    server: VoiceServer, make_client: MakeClient, system: System, view: View, page: Page
) -> None:
    alice, bob = await pair(make_client, server, system=system, keep_flight_record=True)
    bob.listen(lambda frame: None)
    alice.play(ToneSource(440, 600))
    await bob.wait_for(lambda: ALICE in bob.stats.users and bob.stats.users[ALICE].packets > 20)

    def look() -> None:
        page.open(view.url)
        page.until("document.querySelectorAll('#list a').length === 2")
        assert page.until("document.querySelector('#status').textContent === 'live'")
        assert page.until("document.querySelectorAll('#map-gateway .count text').length === 1")
        assert page.text("#map-gateway .count") == "2"
        page.click("#list li:nth-child(2) a")
        page.until("document.querySelector('h1')?.textContent === arguments[0]", f"Guild {GUILD}, channel {CHANNEL}")
        page.until("document.querySelector('#map-call .state')?.textContent === 'connected'")
        page.until("document.querySelector('#privacy-code')")
        assert page.text("#privacy-code").replace(" ", "") == bob.privacy_code
        assert "it waits for nothing" in page.text("#why")
        assert page.text("#map-transport .state") == "open"
        page.until("document.body.innerText.includes('talking')")
        page.until("document.querySelectorAll('.trend polyline[points*=\" \"]').length === 3")
        page.ask("document.getElementById('gateway.ready').dispatchEvent(new Event('click'))")
        assert page.text(".about h2") == "gateway: ready"
        assert "closed_resumable" in page.text(".about table")

    await asyncio.to_thread(look)
    lit = await asyncio.to_thread(page.lit)
    assert {name for name in lit if not name.startswith("heartbeat.b")} == {
        name for name in lit_for(bob.states) if not name.startswith("heartbeat.b")
    }
    assert "heartbeat.beating" in lit  # a parent is lit with its child, whichever that is at the moment

    server.drop_socket(BOB)
    await bob.wait_for(lambda: bob.tally.reconnects == 1 and bob.states["gateway"] == "ready")

    def resumed() -> None:
        page.until("document.querySelector('.way')?.innerText.includes('resumed_received')")
        assert "abnormal end" in page.text("#more")
        page.until("document.querySelector('#map-gateway .taken') !== null")
        arrow = page.ask("[...document.querySelectorAll('#map-gateway .taken')].map((edge) => edge.id)")
        assert "gateway:resuming.awaiting_resumed:ready" in arrow

    await asyncio.to_thread(resumed)
    await bob.close()

    def ended() -> None:
        page.until("document.querySelector('#map-call .state').textContent === 'closed'")
        page.until("document.querySelector('#map-gateway .state').textContent === 'closed.down'")
        assert page.lit() >= {"call.closed", "gateway.closed", "gateway.closed.down", "heartbeat.stopped", "dave.off"}
        page.until("document.querySelector('#list li:nth-child(2)').dataset.health === 'ended'")
        page.click("a[href='#/record/2']")
        page.until("document.querySelector('#number')?.max > 20")
        assert page.text("#list li:first-child").startswith("join_requested")
        assert page.complaints() == []

    await asyncio.to_thread(ended)


async def test_a_call_that_waits_says_for_what(
    server: VoiceServer, make_client: MakeClient, system: System, view: View, page: Page
) -> None:
    alice = make_client(server, ALICE, system=system)
    signalling_of(alice).silent = True
    joining = asyncio.ensure_future(alice.connect(CHANNEL))

    def look() -> None:
        page.open(f"{view.url}#/call/1")
        page.until("document.querySelector('#why')?.textContent.startsWith('call joining.asking for ')")
        assert "missing: voice_state_updated" in page.text("#why")
        assert " in " in page.text("#map-call .since")  # when the wait ends by itself
        assert page.lit() >= {"call.joining", "call.joining.asking", "gateway.closed.down"}

    await asyncio.to_thread(look)
    signalling_of(alice).silent = False
    signalling_of(alice).move(CHANNEL)
    await joining
    await asyncio.to_thread(page.until, "document.querySelector('#why').textContent === 'it waits for nothing'")


def a_record(path: Path, said: str = "") -> dict[str, object]:
    """A run of the machines, saved, and how it must be played; `said` takes the place of all that happened."""
    chaos = Chaos(5)
    recorder = recorded(chaos.world)
    chaos.go()
    lines = list(recorder.lines())
    if said:
        event = {"$": "SignallingFailed", "reason": said}
        lines[1:] = [json.dumps({"at": 1.0, "event": event, "steps": [], "effects": [said]})]
    path.write_text("\n".join(lines), encoding="utf-8")
    film = played("\n".join(lines), path.name)
    states, every = dict(film["begin"]), []
    for frame in film["frames"]:
        states |= {step["machine"]: step["after"] for step in frame["steps"]}
        every.append(dict(states))
    return film | {"states": every}


async def test_a_record_is_played_step_by_step(view: View, page: Page, film_path: Path) -> None:
    film = a_record(film_path)
    frames, states = film["frames"], film["states"]
    assert isinstance(frames, list)
    assert isinstance(states, list)
    assert len(frames) > 10

    def at(number: int) -> None:
        """The player stands there and shows it."""
        page.until("document.querySelector('#number').value === arguments[0]", str(number + 1))
        assert page.lit() == lit_for(states[number])
        assert frames[number]["event"] in page.text("#event")
        for effect in frames[number]["effects"]:
            assert effect in page.text("#more")
        assert page.ask("document.querySelectorAll('#list [data-current]').length") == 1

    def play() -> None:
        page.open(f"{view.url}#/record")
        page.until("document.querySelector('#file')")
        page.driver.find_element("css selector", "#file").send_keys(str(film_path))
        page.until("document.querySelector('.controls')?.hidden === false")
        at(0)
        page.click("#main h1")
        page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
        at(3)
        page.press(Keys.ARROW_LEFT)
        at(2)
        page.press(Keys.END)
        at(len(frames) - 1)
        page.press(Keys.HOME)
        at(0)
        page.click("#forward")
        at(1)
        page.click("#list li:nth-child(7) button")
        at(6)
        number = page.driver.find_element("css selector", "#number")
        number.send_keys(Keys.CONTROL, "a")
        number.send_keys("9", Keys.ENTER)
        at(8)
        page.ask("(document.querySelector('#speed').value = 100)")
        page.click("#first")
        page.click("#play")
        assert page.text("#play") == "Pause"
        page.until("document.querySelector('#number').value === document.querySelector('#number').max")
        page.until("document.querySelector('#play').textContent === 'Play'")
        at(len(frames) - 1)
        page.driver.find_element("css selector", "#filter").send_keys("heartbeat")
        shown = page.ask("document.querySelectorAll('#list li').length")
        assert 0 < shown < len(frames)
        assert page.complaints() == []

    await asyncio.to_thread(play)


async def test_a_rows_guard_and_effects_are_shown_with_the_step(view: View, page: Page, film_path: Path) -> None:
    film = a_record(film_path)
    frames = film["frames"]
    assert isinstance(frames, list)
    number, frame = next((index, frame) for index, frame in enumerate(frames) if frame["steps"] and frame["effects"])
    machine, rows = frame["steps"][0]["machine"], frame["steps"][0]["rows"]

    def look() -> None:
        page.open(f"{view.url}#/record")
        page.until("document.querySelector('#file')")
        page.driver.find_element("css selector", "#file").send_keys(str(film_path))
        page.until("document.querySelectorAll('#list li').length > 0")
        page.click(f"#list li:nth-child({number + 1}) button")
        assert page.text("#more td") == str(rows[0])
        assert machine in page.text("#more h3")

    await asyncio.to_thread(look)


async def test_what_others_wrote_is_text_and_never_markup(view: View, page: Page, film_path: Path) -> None:
    markup = "<img src=x onerror=document.title='taken'>"
    a_record(film_path, said=markup)

    def look() -> None:
        page.open(f"{view.url}#/record")
        page.until("document.querySelector('#file')")
        page.driver.find_element("css selector", "#file").send_keys(str(film_path))
        page.until("document.querySelector('.chips li')")
        assert page.text(".chips li") == markup
        assert markup in page.text(".fields")
        assert page.ask("document.querySelectorAll('main img').length") == 0
        assert page.ask("document.title") == "voicegw"

    await asyncio.to_thread(look)


async def test_a_file_that_is_no_record_is_refused_in_words(view: View, page: Page, tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("some notes\n", encoding="utf-8")

    def look() -> None:
        page.open(f"{view.url}#/record")
        page.until("document.querySelector('#file')")
        page.driver.find_element("css selector", "#file").send_keys(str(path))
        page.until("document.querySelector('#head').innerText.includes('is not a flight record')")

    await asyncio.to_thread(look)


async def test_two_hundred_calls_can_be_found_and_watched(view: View, page: Page, system: System) -> None:
    async with VoiceServer(dave=False) as server:
        system.dials.reserve = lambda now, longest_s: 0.0  # type: ignore[method-assign]
        clients = [
            VoiceClient(
                user_id=number,
                guild_id=GUILD + number,
                signalling=LocalSignalling(server, number),
                policy="allow",
                system=system,
                **server.trust,
            )
            for number in range(1, MANY + 1)
        ]
        await asyncio.gather(*(client.connect(CHANNEL + number) for number, client in enumerate(clients)))

        def look() -> None:
            page.open(view.url)
            page.until("document.querySelectorAll('#list a').length === arguments[0]", MANY)
            assert page.text("#list-note") == f"{MANY} calls"
            assert page.until("document.querySelector('#map-call .count')").text == str(MANY)
            page.driver.find_element("css selector", "#filter").send_keys(str(GUILD + 77))
            page.until("document.querySelectorAll('#list a').length === 1")
            assert page.text("#list-note") == f"1 of {MANY} calls"
            page.press(Keys.TAB, Keys.ENTER)  # from the filter to what it found
            page.until("document.querySelector('h1')?.textContent.startsWith(arguments[0])", f"Guild {GUILD + 77},")
            assert page.lit() >= {"call.connected", "gateway.ready", "dave.clear", "dave.clear.only"}

        await asyncio.to_thread(look)
        closing = clients[100:]
        await asyncio.gather(*(client.close() for client in closing))

        def fewer() -> None:
            page.open(view.url)
            page.until("document.querySelector('#map-call .count')?.textContent === '100'")
            # Choosing a state filters the list.
            page.driver.find_element("id", "call.connected").click()
            page.until("document.querySelector('#filter').value === 'call:connected'")
            page.until("document.querySelectorAll('#list a').length === 100")
            assert page.complaints() == []

        await asyncio.to_thread(fewer)
        await asyncio.gather(*(client.close() for client in clients))


async def test_the_page_fits_and_can_be_read_in_both_widths_and_schemes(
    server: VoiceServer, make_client: MakeClient, system: System, view: View, page: Page
) -> None:
    alice, bob = await pair(make_client, server, system=system, keep_flight_record=True)
    await encrypted(alice, bob)

    def look() -> None:
        page.open(f"{view.url}#/call/1")
        page.until("document.querySelector('#map-call .state')?.textContent === 'connected'")
        page.until("document.querySelector('#privacy-code')")
        grounds = set()
        for where in ("#/call/1", "#/", "#/record/1"):
            page.ask(f"(location.hash = '{where}')")
            page.until("document.querySelector('h1')")
            for width in (1280, 400):
                for dark in (False, True):
                    page.look(width, dark)
                    wide = page.ask("[document.documentElement.scrollWidth, innerWidth]")
                    assert wide[0] <= wide[1] == width
                    grounds.add(page.ask("getComputedStyle(document.body).backgroundColor"))
                    assert page.ask(FAINT) == [], (where, width, dark)
        assert len(grounds) == 2

    await asyncio.to_thread(look)


# Texts with less contrast to what is behind them than 4.5 to 1 (WCAG 2, "Contrast (Minimum)").
FAINT = r"""(() => {
  const parts = (color) => color.match(/[\d.]+/g).map(Number);
  const light = (color) => {
    const linear = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = parts(color).map((value) => linear(value / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if ((parts(color)[3] ?? 1) > 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const faint = [];
  const compare = (text, front, back) => {
    const [high, low] = [light(front), light(back)].sort((a, b) => b - a);
    if ((high + 0.05) / (low + 0.05) < 4.5) faint.push(`${text}: ${front} on ${back}`);
  };
  for (const element of document.querySelectorAll("body *:not(svg *)")) {
    const text = [...element.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join("").trim();
    if (text && element.getClientRects().length) compare(text, getComputedStyle(element).color, behind(element));
  }
  for (const node of document.querySelectorAll("svg .node")) {
    const [shape, text] = [node.querySelector("path"), node.querySelector("text")];
    if (shape && text) compare(text.textContent, getComputedStyle(text).fill, getComputedStyle(shape).fill);
  }
  return faint;
})()"""


async def test_the_keyboard_reaches_everything(
    server: VoiceServer, make_client: MakeClient, system: System, view: View, page: Page
) -> None:
    await pair(make_client, server, system=system)

    def look() -> None:
        page.open(view.url)
        page.until("document.querySelectorAll('#list a').length === 2")
        page.until("document.querySelector('#map-call .count')")
        reached = []
        for _ in range(30):
            page.press(Keys.TAB)
            reached.append(page.ask("document.activeElement.getAttribute('href') ?? document.activeElement.id"))
        assert reached[:7] == ["#main", "#/", "#/", "#/record", "filter", "#/call/1", "#/call/2"]
        assert "call.connected" in reached  # the states that have calls
        assert "metrics" in reached
        page.ask("document.getElementById('gateway.ready').focus()")
        page.press(Keys.ENTER)
        page.until("document.querySelector('#filter').value === 'gateway:ready'")

    await asyncio.to_thread(look)


async def test_the_page_loads_nothing_from_elsewhere_and_waits_for_its_process(
    server: VoiceServer, make_client: MakeClient, system: System, page: Page
) -> None:
    alice = make_client(server, ALICE, system=system)
    await alice.connect(CHANNEL)
    view = await serve_view(system=system, token="a token")

    def look() -> None:
        page.open(view.url)
        page.until("document.querySelectorAll('#list a').length === 1")
        assert page.ask("location.href") == view.url.partition("?")[0]
        loaded = page.ask("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert len(loaded) > 10
        assert {name.split("/")[2] for name in loaded} == {view.url.split("/")[2]}
        assert page.complaints() == []

    await asyncio.to_thread(look)
    port = int(view.url.split(":")[2].partition("/")[0])
    await view.close()
    await asyncio.to_thread(page.until, "document.querySelector('#status').textContent === 'waiting for the process'")
    async with await serve_view(system=system, token="a token", port=port):
        await asyncio.to_thread(page.until, "document.querySelector('#status').textContent === 'live'")
