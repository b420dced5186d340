// All calls: the list with its filter, the counts by state, and the stream of changes that keeps them current.

import { Call } from "./call.js";
import { $, h, milliseconds, percent, say, words } from "./dom.js";

const AT_WORK = "R", OVER = "X";

export class Calls {
  constructor(machines, maps) {
    this.machines = machines;
    this.maps = maps;
    this.lines = new Map();
    this.items = new Map();
    this.shown = null;
    this.wanted = "";
    this.visible = false;
    this.call = new Call(machines, maps);
    this.filter = h("input", {
      type: "search", id: "filter", placeholder: "Filter: id, state, close code", "aria-label": "Filter calls",
      oninput: () => this.#arrange(),
    });
    this.head = h("div", { className: "list-tools" }, this.filter);
  }

  show(id) {
    const again = this.visible && this.shown === id && this.stream;
    this.visible = true;
    this.shown = id;
    this.maps.onpick = (machine, state) => (id === null ? this.#filterBy(`${machine}:${state}`) : this.call.about(machine, state));
    if (again) return;
    $("list-head").replaceChildren(this.head);
    $("list").replaceChildren();
    $("head").replaceChildren();
    $("more").replaceChildren();
    this.maps.dark();
    this.items.clear();
    this.#arrange();
    this.#listen();
    if (id === null) this.#overview();
    else this.call.show(id, this.lines.get(id));
  }

  hide() {
    this.visible = false;
    this.stream?.close();
    this.stream = null;
  }

  // -- what the process says

  #listen() {
    this.stream?.close();
    const stream = this.stream = new EventSource(this.shown === null ? "events" : `events?call=${this.shown}`);
    let first = true;
    stream.onopen = () => {
      first = true; // the next message has all that there is; what was known before may be gone
      say($("status"), "live");
    };
    stream.onerror = () => say($("status"), stream.readyState === EventSource.CLOSED ? "ended" : "waiting for the process");
    stream.onmessage = (message) => {
      const change = JSON.parse(message.data);
      if (first) {
        first = false;
        const now = new Set((change.calls ?? []).map((line) => line.id));
        for (const id of this.lines.keys()) if (!now.has(id)) this.lines.delete(id);
      }
      for (const line of change.calls ?? []) this.lines.set(line.id, line);
      for (const id of change.gone ?? []) this.lines.delete(id);
      if (change.calls || change.gone) this.#arrange();
      if (this.shown === null) this.#overview();
      else this.call.take(this.lines.get(this.shown), change.call);
    };
  }

  // -- the list

  #arrange() {
    const wanted = this.filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const lines = [...this.lines.values()].sort((one, two) => Boolean(one.ended) - Boolean(two.ended) || one.id - two.id);
    const shown = lines.filter((line) => wanted.every((word) => textOf(this.machines, line).includes(word)));
    const items = shown.map((line) => this.#item(line));
    const list = $("list");
    if (items.length !== list.children.length || items.some((item, index) => list.children[index] !== item)) {
      const focused = document.activeElement;
      list.replaceChildren(...items);
      if (list.contains(focused)) focused.focus();
    }
    const total = lines.length;
    say($("list-note"), total === 0 ? "No calls yet. They appear here when the bot joins a channel."
      : shown.length < total ? `${shown.length} of ${total} calls` : total === 1 ? "1 call" : `${total} calls`);
  }

  #item(line) {
    let item = this.items.get(line.id);
    if (!item) {
      const parts = Object.fromEntries(["dot", "guild", "latency", "state", "loss"].map((name) => [name, h("span", { className: name })]));
      const { dot, guild, latency, state, loss } = parts;
      const link = h("a", { href: `#/call/${line.id}` },
        h("span", { className: "line" }, dot, guild, latency), h("span", { className: "line" }, state, loss));
      item = h("li", {}, link);
      this.items.set(line.id, Object.assign(item, { link, parts, line: null }));
    }
    if (item.line !== line) {
      item.line = line;
      const { dot, guild, latency, state, loss } = item.parts;
      item.dataset.health = health(this.machines, line);
      dot.title = item.dataset.health;
      say(guild, line.guild);
      say(state, stateOf(this.machines, line));
      say(latency, line.ended ? "" : milliseconds(line.latency));
      say(loss, line.ended || line.lost_in === null ? "" : `${percent(line.lost_in)} lost`);
    }
    item.link.toggleAttribute("data-current", line.id === this.shown);
    if (line.id === this.shown) item.link.setAttribute("aria-current", "true");
    else item.link.removeAttribute("aria-current");
    return item;
  }

  #filterBy(words) {
    this.filter.value = words;
    this.#arrange();
    this.filter.focus();
  }

  // -- all of them on the maps

  #overview() {
    const live = [...this.lines.values()].filter((line) => !line.ended);
    const counts = {};
    for (const line of live) {
      for (const [machine, state] of Object.entries(line.states)) {
        (counts[machine] ??= {})[state] = (counts[machine][state] ?? 0) + 1;
      }
    }
    const text = JSON.stringify(counts);
    const known = live.map((line) => line.latency).filter((value) => value !== null).sort((a, b) => a - b);
    const losses = live.map((line) => line.lost_in).filter((value) => value !== null);
    const fared = [...this.lines.values()].map((line) => health(this.machines, line));
    const facts = [
      ...["at work", "waiting", "failed"].map((kind) => [kind, String(fared.filter((one) => one === kind).length), kind]),
      ["median latency", milliseconds(known.length ? known[known.length >> 1] : null)],
      ["worst latency", milliseconds(known.at(-1) ?? null)],
      ["worst loss", percent(losses.length ? Math.max(...losses) : null)],
    ];
    if (!this.tiles?.isConnected) {
      this.counted = "";
      this.tiles = h("dl", { className: "tiles" }, ...facts.map(([name, , kind]) => h("div", {}, h("dt", {}, name), h("dd", {},
        kind ? h("button", { type: "button", title: "Show these in the list", onclick: () => this.#filterBy(`is:${kind.replace(" ", "-")}`) }) : ""))));
      $("head").replaceChildren(h("h1", {}, "All calls of this process"), this.tiles,
        h("p", { className: "hint" }, "The numbers say how many calls are in a state. Choose a state to filter the list, or a call to see the way it took. Metrics for Prometheus: ", h("a", { href: "metrics" }, "/metrics")));
    }
    facts.forEach(([, value], index) => {
      const place = this.tiles.children[index].lastChild;
      say(place.firstElementChild ?? place, value);
    });
    if (this.counted !== text) {
      this.counted = text;
      this.maps.count(counts);
    }
  }
}

// What the filter looks into.
function textOf(machines, line) {
  const states = Object.entries(line.states).map(([machine, state]) => `${machine}:${state}`).join(" ");
  return `${line.guild} ${line.channel} ${line.user} ${states} ${line.closed ?? ""} is:${health(machines, line).replace(" ", "-")} ${line.ended ? "ended" : ""} ${line.error ?? ""}`.toLowerCase();
}

const phase = (machines, line, machine) => machines[machine].states[line.states[machine]].phase;

export function health(machines, line) {
  if (line.ended) return line.error ? "failed" : "ended";
  const phases = [phase(machines, line, "call"), phase(machines, line, "gateway")];
  if (phases.includes(OVER)) return "waiting";
  return phases.every((letter) => letter === AT_WORK) ? "at work" : "waiting";
}

function stateOf(machines, line) {
  if (line.ended) return line.error ? `ended: ${line.error}` : "ended";
  const call = words(line.states.call), gateway = words(line.states.gateway), dave = words(line.states.dave);
  return [call, gateway === "ready" ? dave : gateway].join(" · ");
}
