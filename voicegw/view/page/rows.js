// What the tables say about a state or a step.

import { grid, h, words } from "./dom.js";

// A state's meaning and the rows that apply in it, in the order in which they are tried.
export function aboutState(machines, machine, state) {
  const about = machines[machine].states[state];
  const parent = state.split(".")[0];
  const rows = machines[machine].rows.filter((row) => row.from.some((source) => [state, parent, "*"].includes(source)));
  return h("div", {},
    h("h2", {}, `${machine}: ${words(state)}`),
    h("p", {}, about.text, about.deadline ? ` It waits no longer than ${about.deadline} says.` : ""),
    h("div", { className: "table" }, rowTable(machines, machine, rows)));
}

export function rowTable(machines, machine, rows) {
  return grid(
    [["row", "short"], ["event"], ["guard"], ["to"], ["effects"], ["source", "source"]],
    rows.map((row) => [{}, [
      String(row.number), [row.event, machines[machine].events[row.event]], row.guard ?? "",
      row.to === null ? "stays" : words(row.to), row.effects.join(", "), row.source,
    ]]),
    "No row begins here.");
}
