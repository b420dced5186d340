// How a figure went while the page was open: a line without axes, from nothing at the bottom to the most at the top.

const SVG = "http://www.w3.org/2000/svg";
const KEPT = 100; // half a minute

export class Trend {
  constructor() {
    this.values = [];
    this.line = document.createElementNS(SVG, "polyline");
    this.element = document.createElementNS(SVG, "svg");
    this.element.setAttribute("class", "trend");
    this.element.setAttribute("viewBox", `0 0 ${KEPT} 20`);
    this.element.setAttribute("preserveAspectRatio", "none");
    this.element.setAttribute("aria-hidden", "true");
    this.element.append(this.line);
  }

  // One more value; null where it is not known.
  add(value) {
    this.values.push(value);
    if (this.values.length > KEPT) this.values.shift();
    const most = Math.max(...this.values.filter((one) => one !== null), Number.EPSILON);
    const begin = KEPT - this.values.length;
    const points = this.values.flatMap((one, index) => (one === null ? [] : [`${begin + index},${(19 - (one / most) * 17).toFixed(1)}`]));
    this.line.setAttribute("points", points.length > 1 ? points.join(" ") : "");
  }
}
