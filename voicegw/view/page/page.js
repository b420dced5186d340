// The page: which view is shown, as the address says, and the machines that both share.

import { Calls } from "./calls.js";
import { $, say } from "./dom.js";
import { Maps } from "./maps.js";
import { Player } from "./player.js";

async function begin() {
  const machines = await (await fetch("machines")).json();
  const maps = new Maps(machines, $("maps"));
  await maps.load();
  const calls = new Calls(machines, maps);
  const player = new Player(machines, maps);
  const given = await (await fetch("play")).json();
  if (given) {
    player.take(given);
    if (!location.hash) location.replace("#/record");
  }

  function show() {
    const [, view = "", id = ""] = location.hash.split("/");
    const playing = view === "record";
    $("tab-calls").toggleAttribute("data-current", !playing);
    $("tab-record").toggleAttribute("data-current", playing);
    document.body.dataset.view = playing ? "record" : view === "call" ? "call" : "overview";
    if (playing) {
      calls.hide();
      player.show(id);
    } else {
      player.hide();
      calls.show(view === "call" ? Number(id) : null);
    }
  }
  addEventListener("hashchange", () => {
    show();
    $("main").scrollIntoView();
  });
  show();
}

begin().catch((error) => {
  document.body.dataset.view = "failed";
  say($("status"), `this page cannot be shown: ${error.message}`);
});
