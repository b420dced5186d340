// The six machines: pictures drawn from the tables, in which states and arrows are found by their ids.

import { h, lasted, say, words } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const ORDER = ["gateway", "call", "dave", "heartbeat", "transport", "speech"];
const NARROW = { transport: true, heartbeat: true, speech: true };
const LEAST_SCALE = 0.7, MOST_SCALE = 1.05, SLIM_SCALE = 0.95;

export class Maps {
  constructor(machines, place) {
    this.machines = machines;
    this.figures = {};
    this.onpick = null;
    this.lit = {};
    const columns = [h("div", { className: "wide" }), h("div", { className: "slim" })];
    for (const name of ORDER.filter((name) => name in machines)) {
      const figure = this.figures[name] = this.#figure(name);
      columns[NARROW[name] ? 1 : 0].append(figure.element);
    }
    place.append(...columns);
    addEventListener("resize", () => {
      for (const [name, figure] of Object.entries(this.figures)) {
        if (this.lit[name]) this.#bringIntoView(figure, `${name}.${this.lit[name]}`);
      }
    });
  }

  async load() {
    await Promise.all(Object.keys(this.machines).map(async (name) => {
      const answer = await fetch(`maps/${name}.svg`);
      if (!answer.ok) throw new Error(await answer.text());
      const drawn = new DOMParser().parseFromString(await answer.text(), "image/svg+xml").documentElement;
      const svg = document.importNode(drawn, true);
      const width = svg.viewBox.baseVal.width;
      svg.removeAttribute("width");
      svg.removeAttribute("height");
      svg.style.width = "100%";
      svg.style.maxWidth = `${Math.round(width * (NARROW[name] ? SLIM_SCALE : MOST_SCALE))}px`;
      svg.style.minWidth = `${Math.round(width * LEAST_SCALE)}px`;
      svg.setAttribute("role", "group");
      this.figures[name].svg = svg;
      this.figures[name].scroll.append(svg);
      this.#explain(name, svg);
    }));
  }

  // The state of each machine, and the steps that led there: their arrows stand out.
  light(states, steps = []) {
    for (const [name, figure] of Object.entries(this.figures)) {
      const state = states[name];
      const taken = steps.filter((step) => step.machine === name);
      figure.element.classList.toggle("moved", taken.length > 0);
      say(figure.state, state ? words(state) : "not known");
      figure.svg?.setAttribute("aria-label", `${name}: ${state ?? "not known"}`);
      this.#mark(name, "taken", taken.map((step) => this.#arrow(step)));
      this.#mark(name, "left", taken.filter((step) => step.before !== step.after).map((step) => `${name}.${step.before}`));
      if (this.lit[name] === state) continue;
      this.lit[name] = state;
      this.#mark(name, "lit", state ? [`${name}.${state}`, `${name}.${state.split(".")[0]}`] : []);
      if (!figure.svg) continue;
      this.#unreach(figure.svg);
      if (!state) continue;
      if (this.onpick) this.#reach(figure.svg.getElementById(`${name}.${state}`), `${name} ${state}: show its rows`);
      this.#bringIntoView(figure, `${name}.${state}`);
    }
  }

  // Beside a machine's name: since when it is there, and what comes by itself.
  note(name, text) {
    say(this.figures[name].note, text);
  }

  // How many calls are in each state.
  count(counts) {
    this.dark();
    for (const [name, figure] of Object.entries(this.figures)) {
      const found = Object.entries(counts[name] ?? {}).filter(([, calls]) => calls > 0);
      this.#mark(name, "has", found.flatMap(([state]) => [`${name}.${state}`, `${name}.${state.split(".")[0]}`]));
      say(figure.state, "");
      say(figure.note, "");
      figure.svg?.setAttribute("aria-label", `${name}: ${found.map(([state, calls]) => `${calls} ${state}`).join(", ")}`);
      for (const [state, calls] of found) this.#badge(name, state, calls);
    }
  }

  dark() {
    this.light({});
    for (const [name, figure] of Object.entries(this.figures)) {
      this.#mark(name, "has", []);
      figure.svg?.querySelectorAll(".count").forEach((badge) => badge.remove());
      say(figure.state, "");
      say(figure.note, "");
    }
  }

  #figure(name) {
    const machine = this.machines[name];
    const state = h("output", { className: "state" });
    const note = h("span", { className: "since" });
    const scroll = h("div", { className: "scroll" });
    const caption = h("figcaption", { title: machine.title }, h("b", {}, name), " ", state, " ", note);
    return { element: h("figure", { id: `map-${name}` }, caption, scroll), state, note, scroll, svg: null };
  }

  // Names are for graphviz; people get what the table says.
  #explain(name, svg) {
    const machine = this.machines[name];
    svg.querySelectorAll("title").forEach((title) => title.remove());
    for (const [state, about] of Object.entries(machine.states)) {
      const node = svg.getElementById(`${name}.${state}`);
      node.append(title(`${state}: ${about.text}`));
      node.classList.add("leaf");
      node.addEventListener("click", () => this.onpick?.(name, state));
      node.addEventListener("keydown", (event) => {
        if (event.key !== "Enter" && event.key !== " ") return;
        event.preventDefault();
        this.onpick?.(name, state);
      });
    }
    const arrows = {};
    for (const row of machine.rows) {
      if (row.to === null) continue;
      for (const source of row.from) {
        (arrows[`${name}:${source}:${row.to}`] ??= []).push(row.guard ? `${row.event} [${row.guard}]` : row.event);
      }
    }
    for (const [id, events] of Object.entries(arrows)) {
      const [, source, target] = id.split(":");
      svg.getElementById(id)?.append(title(`${source} to ${target}:\n${[...new Set(events)].join("\n")}`));
    }
  }

  #arrow(step) {
    const rows = this.machines[step.machine].rows.filter((row) => step.rows.includes(row.number));
    for (const row of rows) {
      if (row.to === null) continue;
      const parent = step.before.split(".")[0];
      const source = [step.before, parent, "*"].find((name) => row.from.includes(name));
      if (source) return `${step.machine}:${source}:${row.to}`;
    }
    return "";
  }

  #mark(name, kind, ids) {
    const svg = this.figures[name].svg;
    if (!svg) return;
    svg.querySelectorAll(`.${kind}`).forEach((element) => ids.includes(element.id) || element.classList.remove(kind));
    for (const id of ids) {
      const element = id && svg.getElementById(id);
      if (!element) continue;
      element.classList.add(kind);
      if (kind === "taken") element.parentNode.append(element); // above the others
    }
  }

  #badge(name, state, calls) {
    const node = this.figures[name].svg.getElementById(`${name}.${state}`);
    const box = node.getBBox();
    const badge = document.createElementNS(SVG, "g");
    badge.setAttribute("class", "count");
    const text = document.createElementNS(SVG, "text");
    text.textContent = String(calls);
    text.setAttribute("x", box.x + box.width);
    text.setAttribute("y", box.y - 1);
    const back = document.createElementNS(SVG, "rect");
    const width = 10 + 8 * text.textContent.length;
    for (const [key, value] of Object.entries({ x: box.x + box.width - width / 2, y: box.y - 14, width, height: 17, rx: 8.5 })) {
      back.setAttribute(key, value);
    }
    badge.append(back, text);
    node.append(badge);
    this.#reach(node, `${calls} in ${name} ${state}: filter the list`);
  }

  // By keyboard, too: the states that have something to tell.
  #reach(node, label) {
    node.setAttribute("tabindex", "0");
    node.setAttribute("role", "button");
    node.setAttribute("aria-label", label);
  }

  #unreach(svg) {
    for (const node of svg.querySelectorAll(".leaf[tabindex]")) ["tabindex", "role", "aria-label"].forEach((name) => node.removeAttribute(name));
  }

  #bringIntoView(figure, id) {
    const { scroll, svg } = figure;
    const node = svg?.getElementById(id);
    if (!node || scroll.scrollWidth <= scroll.clientWidth) return;
    const at = node.getBoundingClientRect(), frame = scroll.getBoundingClientRect();
    scroll.scrollLeft += at.left + at.width / 2 - frame.left - frame.width / 2;
  }
}

export function deadlineNote(since, deadline, now) {
  const parts = [];
  if (since) parts.push(`for ${lasted(now - since)}`);
  if (deadline) parts.push(`${words(deadline.name)} in ${lasted(deadline.at - now)}`);
  return parts.join(", ");
}

function title(text) {
  const element = document.createElementNS(SVG, "title");
  element.textContent = text;
  return element;
}
