// A flight record, event by event: forward, back, anywhere, or by itself.

import { $, h, inFives, lasted, say, words } from "./dom.js";
import { rowTable } from "./rows.js";

const SPEEDS = [["a step a second", 0], ["as it was", 1], ["10 times as fast", 10], ["100 times as fast", 100]];
const STEP_MS = 1000, LEAST_MS = 60, LONGEST_MS = 3000;
const FILE_BYTES = 32 * 1024 * 1024;

export class Player {
  constructor(machines, maps) {
    this.machines = machines;
    this.maps = maps;
    this.pulse = new Set(Object.values(machines).flatMap((machine) => machine.pulse));
    this.record = null;
    this.at = 0;
    this.visible = false;
    this.withPulse = true;
    addEventListener("keydown", (event) => this.visible && this.#key(event));
    addEventListener("dragover", (event) => this.visible && event.preventDefault());
    addEventListener("drop", (event) => {
      if (!this.visible) return;
      event.preventDefault();
      this.#read(event.dataTransfer.files[0]);
    });
  }

  async show(id) {
    this.visible = true;
    this.maps.onpick = null;
    this.#build();
    if (id && this.source !== id) {
      this.source = id;
      say(this.parts.note, "loading");
      await this.#load(await fetch(`calls/${id}/play`));
    } else if (this.record) {
      this.#open();
    }
  }

  hide() {
    if (!this.visible) return;
    this.visible = false;
    this.#pause();
  }

  // A record as the process has read it.
  take(record) {
    this.record = record;
    this.at = 0;
    // The states after each event, all at once: a jump needs no replay.
    let states = { ...record.begin };
    this.states = record.frames.map((frame) => {
      for (const step of frame.steps) states = { ...states, [step.machine]: step.after };
      return states;
    });
  }

  async #load(answer) {
    if (!answer.ok) {
      say(this.parts.note, await answer.text());
      return;
    }
    this.take(await answer.json());
    if (this.visible) this.#open();
  }

  async #read(file) {
    if (!file) return;
    this.source = "";
    if (file.size > FILE_BYTES) {
      say(this.parts.note, "This file is too large for a flight record.");
      return;
    }
    say(this.parts.note, `reading ${file.name}`);
    const headers = { "Content-Type": "application/x-ndjson" };
    await this.#load(await fetch(`play?name=${encodeURIComponent(file.name)}`, { method: "POST", headers, body: file }));
  }

  // -- the parts

  #build() {
    const button = (id, label, text, act) => h("button", { type: "button", id, "aria-label": label, title: label, onclick: act }, text);
    const file = h("input", { type: "file", id: "file", accept: ".jsonl,.ndjson,application/x-ndjson", onchange: () => this.#read(file.files[0]) });
    this.parts = {
      title: h("h1", {}, "Flight record"),
      note: h("p", { className: "place", role: "status" }, "Choose the JSON lines of a flight recorder, or drop them here. They stay on this machine."),
      warning: h("p", { className: "error", hidden: true }),
      slider: h("input", { type: "range", id: "slider", min: 1, value: 1, "aria-label": "Event", oninput: (event) => this.#go(Number(event.target.value) - 1) }),
      number: h("input", { type: "number", id: "number", min: 1, value: 1, "aria-label": "Event number", onchange: (event) => this.#go(Math.round(event.target.valueAsNumber) - 1) }),
      total: h("span", {}),
      play: button("play", "Play (space)", "Play", () => (this.timer ? this.#pause() : this.#play())),
      speed: h("select", { id: "speed", "aria-label": "Speed" }, ...SPEEDS.map(([text, factor]) => h("option", { value: factor }, text))),
      event: h("div", { className: "event", id: "event", "aria-live": "polite" }),
      steps: h("div", { className: "steps" }),
    };
    const { title, note, warning, slider, number, total, play, speed, event, steps } = this.parts;
    this.parts.controls = h("div", { className: "controls", hidden: true, role: "group", "aria-label": "Player" },
      button("first", "To the first event (Home)", "«", () => this.#go(0)),
      button("back", "One event back (left arrow)", "‹", () => this.#step(-1)),
      play,
      button("forward", "One event forward (right arrow)", "›", () => this.#step(1)),
      button("last", "To the last event (End)", "»", () => this.#go(Infinity)),
      slider, h("span", { className: "place" }, number, total), speed);
    $("head").replaceChildren(title, note, h("p", { className: "actions" }, h("label", { className: "button plain", htmlFor: "file" }, "Open a record"), file), warning, this.parts.controls, event);
    $("more").replaceChildren(steps);
    this.filter = h("input", { type: "search", id: "filter", placeholder: "Filter: event, machine, state", "aria-label": "Filter events", oninput: () => this.#list() });
    this.pulseBox = h("input", { type: "checkbox", checked: this.withPulse, onchange: () => { this.withPulse = this.pulseBox.checked; this.#list(); } });
    $("list-head").replaceChildren(h("div", { className: "list-tools" }, this.filter, h("label", { className: "check" }, this.pulseBox, " heartbeats and keepalives, too")));
    $("list").replaceChildren();
    say($("list-note"), "");
    say($("status"), "");
    this.maps.dark();
  }

  #open() {
    const { record } = this;
    const { note, warning, controls, slider, number, total, title } = this.parts;
    say(title, `Flight record: ${record.name}`);
    say(note, [`user ${record.user} in guild ${record.guild}`, `policy ${record.options.policy}`, `${record.frames.length} events in ${lasted(record.lasted)}`].join(" · "));
    const odd = record.dropped ? `The first ${record.dropped} events were dropped by the recorder: states that no later event tells are not known.`
      : record.differs !== null ? `From event ${record.differs + 1} on today's tables do something else than was recorded. What is shown is the record.` : "";
    warning.hidden = !odd;
    say(warning, odd);
    controls.hidden = false;
    slider.max = number.max = record.frames.length;
    say(total, ` of ${record.frames.length}`);
    this.items = record.frames.map((frame, index) => this.#item(frame, index));
    this.#list();
    this.#go(this.at);
  }

  #item(frame, index) {
    const machines = [...new Set(frame.steps.map((step) => step.machine))].join(", ");
    const moved = frame.steps.filter((step) => step.before !== step.after).map((step) => `${words(step.before)} › ${words(step.after)}`);
    const link = h("button", { type: "button", onclick: () => { this.#pause(); this.#go(index); } },
      h("span", { className: "line" }, h("span", { className: "dot" }), h("span", { className: "guild" }, frame.event), h("span", { className: "latency" }, `${(frame.at / 1000).toFixed(3)} s`)),
      h("span", { className: "line" }, h("span", { className: "state" }, moved.join(", ") || (frame.steps.length ? `stays (${machines})` : "nobody minds it"))));
    const item = h("li", {}, link);
    item.dataset.health = moved.length ? "at work" : "ended";
    return Object.assign(item, { link, text: `${frame.event} ${machines} ${frame.steps.map((step) => `${step.before} ${step.after}`).join(" ")} ${frame.words.join(" ")}`.toLowerCase() });
  }

  #list() {
    const wanted = this.filter.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const shown = (this.items ?? []).filter((item, index) => (this.withPulse || !this.pulse.has(this.record.frames[index].event)) && wanted.every((word) => item.text.includes(word)));
    $("list").replaceChildren(...shown);
    if (this.items) say($("list-note"), shown.length < this.items.length ? `${shown.length} of ${this.items.length} events` : `${shown.length} events`);
  }

  // -- where it is

  #go(index) {
    const frames = this.record?.frames ?? [];
    if (!frames.length) return;
    this.at = Math.max(0, Math.min(frames.length - 1, Number.isNaN(index) ? this.at : index));
    const frame = frames[this.at], states = this.states[this.at];
    const { slider, number, event, steps } = this.parts;
    slider.value = number.value = this.at + 1;
    slider.setAttribute("aria-valuetext", `${this.at + 1}: ${frame.event}`);
    this.maps.light(states, frame.steps);
    for (const machine of Object.keys(this.machines)) {
      const moved = frame.steps.filter((step) => step.machine === machine);
      this.maps.note(machine, moved.map((step) => step.event).join(", "));
    }
    event.replaceChildren(
      h("h2", {}, h("span", { className: "time" }, `${(frame.at / 1000).toFixed(3)} s`), ` ${frame.event}`),
      h("ul", { className: "words" }, ...frame.words.map((line) => h("li", {}, line))));
    steps.replaceChildren(...[
      this.#rows(frame),
      h("section", {}, h("h2", {}, "Effects"), frame.effects.length ? h("ol", { className: "chips" }, ...frame.effects.map((effect) => h("li", {}, effect))) : h("p", { className: "hint" }, "none")),
      h("section", {}, h("h2", {}, "The event"), this.#content(frame.content)),
    ]);
    this.current?.removeAttribute("data-current");
    this.current?.removeAttribute("aria-current");
    const { link } = this.items[this.at];
    this.current = link;
    link.setAttribute("data-current", "");
    link.setAttribute("aria-current", "step");
    if (link.isConnected) inList(link);
  }

  #rows(frame) {
    const parts = frame.steps.map((step) => {
      const rows = this.machines[step.machine].rows.filter((row) => step.rows.includes(row.number));
      return h("div", {}, h("h3", {}, `${step.machine}: ${words(step.before)} › ${step.before === step.after ? "stays" : words(step.after)}`),
        rows.length > 1 ? h("p", { className: "hint" }, "One of these rows; which one cannot be told from the record.") : null,
        h("div", { className: "table" }, rowTable(this.machines, step.machine, rows)));
    });
    return h("section", {}, h("h2", {}, "Rows"), ...(parts.length ? parts : [h("p", { className: "hint" }, "No machine has a row for this event in its state.")]));
  }

  #content(content) {
    const fields = Object.entries(content);
    if (!fields.length) return h("p", { className: "hint" }, "It brings nothing but itself.");
    return h("dl", { className: "fields" }, ...fields.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, shown(name, value)))));
  }

  #step(by) {
    this.#pause();
    this.#go(this.at + by);
  }

  #play() {
    if (!this.record?.frames.length) return;
    if (this.at >= this.record.frames.length - 1) this.#go(0);
    say(this.parts.play, "Pause");
    const next = () => {
      const { frames } = this.record;
      if (this.at >= frames.length - 1) {
        this.#pause();
        return;
      }
      const factor = Number(this.parts.speed.value);
      const gap = factor ? (frames[this.at + 1].at - frames[this.at].at) / factor : STEP_MS;
      this.timer = setTimeout(() => {
        this.#go(this.at + 1);
        next();
      }, Math.min(LONGEST_MS, Math.max(LEAST_MS, gap)));
    };
    next();
  }

  #pause() {
    clearTimeout(this.timer);
    this.timer = null;
    if (this.parts) say(this.parts.play, "Play");
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.record) return;
    const { tagName, type } = event.target;
    if (tagName === "SELECT" || (tagName === "INPUT" && type !== "range" && type !== "checkbox")) return;
    const acts = { ArrowLeft: () => this.#step(-1), ArrowRight: () => this.#step(1), Home: () => this.#step(-Infinity), End: () => this.#step(Infinity) };
    if (tagName !== "BUTTON" && tagName !== "A") acts[" "] = () => (this.timer ? this.#pause() : this.#play());
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}

// Secrets come as numbers: the same secret the same number.
function shown(name, value) {
  if (value === null) return "none";
  if (typeof value !== "object") return /code$/.test(name) && /^\d{30}$/.test(value) ? inFives(value) : String(value);
  if (value.$ === "Secret") return `secret ${value.number}`;
  if (value.$ === "bytes") return `${value.length} bytes (digest ${value.digest})`;
  if (value.$ === "error") return `${value.kind}: ${value.text}`;
  return JSON.stringify(value);
}

function inList(element) {
  const box = element.closest("aside"), at = element.getBoundingClientRect(), frame = box.getBoundingClientRect();
  if (box.scrollHeight > box.clientHeight && (at.top < frame.top + 120 || at.bottom > frame.bottom - 40)) {
    box.scrollTop += at.top - frame.top - frame.height / 2;
  }
}
