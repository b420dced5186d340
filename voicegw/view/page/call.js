// One call: what it waits for, its figures, its users, and the way it took.

import { $, clock, grid, h, inFives, milliseconds, number, percent, say, words } from "./dom.js";
import { deadlineNote } from "./maps.js";
import { aboutState } from "./rows.js";
import { Trend } from "./trend.js";

const TOGETHER_MS = 50; // steps so close to the newest came with it

export class Call {
  constructor(machines, maps) {
    this.machines = machines;
    this.maps = maps;
    this.pulse = new Set(Object.values(machines).flatMap((machine) => machine.pulse));
    this.withPulse = false;
  }

  show(id, line) {
    this.id = id;
    this.line = line;
    this.whole = {};
    this.trends = { latency: new Trend(), "lost, to us": new Trend(), jitter: new Trend() };
    this.heard = null;
    this.parts = {
      title: h("h1", {}),
      place: h("p", { className: "place" }),
      error: h("p", { className: "error", hidden: true }),
      why: h("pre", { className: "why", id: "why" }),
      tiles: h("dl", { className: "tiles five" }),
      code: h("p", { className: "code" }),
      record: h("p", { className: "actions" }),
      about: h("section", { className: "about", hidden: true, "aria-live": "polite" }),
      users: h("div", { className: "table" }),
      closes: h("div", { className: "table" }),
      way: h("div", { className: "table way" }),
    };
    const { title, place, error, why, tiles, code, record, about, users, closes, way } = this.parts;
    const pulse = h("label", { className: "check" },
      h("input", { type: "checkbox", checked: this.withPulse, onchange: (event) => { this.withPulse = event.target.checked; this.#way(); } }),
      " heartbeats and keepalives, too");
    $("head").replaceChildren(title, place, error, why, tiles, code, record);
    $("more").replaceChildren(about,
      h("section", {}, h("h2", {}, "The way it took"), pulse, way),
      h("section", {}, h("h2", {}, "Users"), users),
      h("section", {}, h("h2", {}, "Close codes"), closes));
    this.take(line, null);
  }

  // A new line of the list, or new parts of the rest.
  take(line, change) {
    if (!this.parts.title.isConnected) return;
    if (change && change.id === this.id) Object.assign(this.whole, change);
    if (line) this.line = line;
    if (!this.line) {
      say(this.parts.title, `There is no call ${this.id}`);
      say(this.parts.place, "It may have ended a while ago, or the process has been started anew.");
      return;
    }
    this.#head();
    if (change) this.#follow();
    const steps = (this.whole.way ?? []).filter((step) => !this.pulse.has(step.event));
    this.maps.light(this.line.states, steps.filter((step) => step.at > steps[0].at - TOGETHER_MS));
    for (const machine of Object.keys(this.machines)) {
      const deadline = this.line.ended ? null : this.whole.deadlines?.[machine];
      this.maps.note(machine, this.line.ended ? "" : deadlineNote(this.whole.since?.[machine], deadline, this.whole.now));
    }
    if (!change || change.way) this.#way();
    if (!change || change.users) this.#users();
    if (!change || change.closes) this.#closes();
  }

  // The figures of the last moment; a loss is that of the packets which came, or did not, since then.
  #follow() {
    const { totals } = this.whole;
    if (this.line.ended || !totals) return;
    const { received, lost } = this.heard ?? totals;
    const expected = totals.received + totals.lost - received - lost;
    this.heard = totals;
    this.trends.latency.add(this.line.latency);
    this.trends.jitter.add(this.line.jitter);
    this.trends["lost, to us"].add(expected > 0 ? (totals.lost - lost) / expected : 0);
  }

  about(machine, state) {
    const { about } = this.parts;
    about.hidden = false;
    about.replaceChildren(aboutState(this.machines, machine, state));
    about.scrollIntoView();
  }

  #head() {
    const { title, place, error, why, tiles, code, record } = this.parts;
    const { line, whole } = this;
    say(title, `Guild ${line.guild}, channel ${line.channel}`);
    const facts = [`user ${line.user}`, whole.endpoint, whole.mode, whole.policy && `policy ${whole.policy}`];
    say(place, facts.filter(Boolean).join(" · "));
    error.hidden = !line.error;
    say(error, line.error ? `Ended: ${line.error}` : "");
    why.hidden = Boolean(line.ended);
    say(why, whole.why ?? "");
    const totals = whole.totals ?? {};
    const shown = [
      ["latency", milliseconds(line.latency), "The last heartbeat's round trip"],
      ["lost, to us", percent(line.lost_in), "Packets that did not come in time"],
      ["lost, from us", percent(line.lost_out), "What the voice server reports of our packets (RTCP); – where it reports nothing"],
      ["jitter", milliseconds(line.jitter), "RFC 3550's, of the user with the most"],
      ["sent", number(line.sent), `Packets; ${number(totals.held)} held, ${number(totals.not_sent)} not sent`],
      ["received", number(line.received), `Packets; ${number(totals.late)} late, ${number(totals.broken)} broken`],
      ["DAVE epoch", whole.dave ? String(line.epoch) : "off", "The epoch of the end-to-end encrypted group"],
      ["others", String(line.others), `${line.talking} of them talking`],
      ["reconnects", String(line.reconnects), "How often the voice session was lost; what came next is a resume or a fresh session"],
      ["last close", line.closed ? codeOf(line.closed) : "–", whole.closes?.find((close) => close.code === line.closed)?.meaning ?? "No close of the websocket yet"],
    ];
    if (tiles.children.length !== shown.length) {
      tiles.replaceChildren(...shown.map(([name]) => h("div", {}, h("dt", {}, name), h("dd", {}), this.trends[name]?.element)));
    }
    shown.forEach(([, value, hint], index) => {
      say(tiles.children[index].children[1], value);
      tiles.children[index].title = hint;
    });
    code.hidden = !whole.code;
    if (whole.code && code.dataset.code !== whole.code) {
      code.dataset.code = whole.code;
      code.replaceChildren("Privacy code ", h("code", { id: "privacy-code" }, inFives(whole.code)), h("span", { className: "hint" }, " all in the call see the same one where nobody listens in"));
    }
    if (whole.recorded && !record.children.length) {
      record.append(h("a", { className: "button", href: `#/record/${this.id}` }, "Play its flight record"),
        h("a", { className: "button plain", href: `calls/${this.id}/record`, download: `call-${this.id}.jsonl` }, "Save it"));
    }
  }

  #way() {
    const steps = (this.whole.way ?? []).filter((step) => this.withPulse || !this.pulse.has(step.event));
    this.parts.way.replaceChildren(grid(
      [["time", "time"], ["machine"], ["event"], ["from"], ["to"], ["row", "figure"]],
      steps.map((step) => {
        const stays = step.before === step.after;
        const event = [step.event, this.machines[step.machine].events[step.event]];
        return [{ className: stays ? "stays" : "" }, [clock(step.at), step.machine, event, words(step.before), stays ? "stays" : words(step.after), step.rows.join(", ")]];
      }),
      "Nothing has moved yet."));
  }

  #users() {
    const counted = ["packets", "lost", "recovered", "late", "broken"];
    this.parts.users.replaceChildren(grid(
      [["user"], [""], ...counted.map((name) => [name, "figure"]), ["jitter", "figure"], ["delay", "figure"], ["identity"]],
      (this.whole.users ?? []).map((user) => [{ className: user.here ? "" : "stays" }, [
        user.id, !user.here ? "left" : user.speaking ? "talking" : "",
        ...counted.map((name) => number(user[name])), milliseconds(user.jitter), milliseconds(user.delay), user.verified,
      ]]),
      "Nobody else is in the call."));
  }

  #closes() {
    this.parts.closes.replaceChildren(grid(
      [["code", "short"], ["times", "short"], ["meaning"]],
      (this.whole.closes ?? []).map((close) => [{}, [codeOf(close.code), String(close.count), close.meaning]]),
      "The voice websocket has not been closed."));
  }
}

const codeOf = (code) => (code === "none" ? "no code" : code);
