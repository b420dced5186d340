// Elements, and the words that are put into them: always as text, never as markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

// A table: columns as [name, class], rows as [properties, cells]; a cell is text, or [text, hint].
export function grid(columns, rows, none) {
  if (!rows.length) return h("p", { className: "hint" }, none);
  const cell = (content, [, kind]) => (Array.isArray(content) ? h("td", { className: kind, title: content[1] }, content[0]) : h("td", { className: kind }, content));
  return h("table", {},
    h("thead", {}, h("tr", {}, ...columns.map(([name, kind]) => h("th", { scope: "col", className: kind }, name)))),
    h("tbody", {}, ...rows.map(([properties, cells]) => h("tr", properties, ...cells.map((content, index) => cell(content, columns[index]))))));
}

export const $ = (id) => document.getElementById(id);

// Changes the text only where it is another, so that what is selected stays selected.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export const words = (name) => name.replaceAll("_", " ");

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`;
}

export function percent(value) {
  if (value === null || value === undefined) return "–";
  return value === 0 ? "0 %" : value < 0.001 ? "< 0.1 %" : `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %`;
}

export function lasted(ms) {
  const seconds = Math.max(0, ms / 1000);
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86400)} d ${Math.floor((seconds % 86400) / 3600)} h`;
}

export function clock(ms) {
  const time = new Date(ms);
  const two = (number) => String(number).padStart(2, "0");
  const thousandths = String(time.getMilliseconds()).padStart(3, "0");
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}.${thousandths}`;
}

export const number = (value) => (value ?? 0).toLocaleString("en");

export const inFives = (code) => code.replace(/(.{5})(?=.)/g, "$1 ");
