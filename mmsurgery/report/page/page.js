"use strict";
// Everything can be read without this script; it sorts tables, shows and hides runs, opens what is linked to.
const number = (cell) => {
  const text = cell ? cell.dataset.value ?? cell.textContent.replace(/[,\s%]/g, "").replace("−", "-") : "";
  const value = text.trim() === "" ? NaN : Number.parseFloat(text);
  return value;
};
const compare = (a, b) => {
  const [x, y] = [number(a), number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) {
    if (!Number.isNaN(x)) return -1;
    if (!Number.isNaN(y)) return 1;
    return (a?.textContent ?? "").localeCompare(b?.textContent ?? "");
  }
  return x - y;
};
for (const table of document.querySelectorAll("table[data-sortable]")) {
  const bodies = [...table.tBodies];
  const heads = [...table.tHead.rows].flatMap((row) => [...row.cells]).filter((cell) => cell.colSpan === 1);
  const columns = [...(bodies[0]?.rows[0]?.cells ?? [])].length;
  const first = [...table.tHead.rows[0].cells];
  // with two rows of headings the second one lies under the spans of the first
  const order = table.tHead.rows.length === 1 ? heads : first.flatMap((cell) => cell.colSpan === 1 ? [cell] : []);
  if (table.tHead.rows.length === 2) {
    const below = [...table.tHead.rows[1].cells];
    order.length = 0;
    for (const cell of first) order.push(...(cell.colSpan === 1 ? [cell] : below.splice(0, cell.colSpan)));
  }
  if (order.length !== columns) continue;
  order.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("num"));
      for (const other of order) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const byColumn = (a, b) => {
        const [x, y] = [a.cells[column], b.cells[column]];
        const empty = Number(Number.isNaN(number(x))) - Number(Number.isNaN(number(y)));
        return head.classList.contains("num") && empty ? empty : (up ? 1 : -1) * compare(x, y);
      };
      // within each group: its heading stays above its rows
      for (const body of bodies) body.append(...[...body.rows].filter((row) => !row.matches(".sub")).sort(byColumn));
    });
  });
}
for (const legend of document.querySelectorAll(".legend[data-chart]")) {
  const chart = legend.parentElement.querySelector("svg.curves");
  for (const item of legend.querySelectorAll("li[data-series]")) {
    const series = chart.querySelector(`.series.n${item.dataset.series}`);
    const button = document.createElement("button");
    button.type = "button";
    button.title = "Show or hide";
    button.setAttribute("aria-pressed", "true");
    button.append(...item.childNodes);
    item.append(button);
    button.addEventListener("click", () => {
      const hidden = series.classList.toggle("off");
      button.setAttribute("aria-pressed", String(!hidden));
    });
    const focus = (on) => { chart.classList.toggle("focused", on); series.classList.toggle("on", on); };
    for (const [event, on] of [["mouseenter", true], ["mouseleave", false], ["focus", true], ["blur", false]]) {
      button.addEventListener(event, () => focus(on));
    }
  }
}
const reveal = () => {
  let target = null;
  try { target = document.getElementById(decodeURIComponent(location.hash.slice(1))); } catch { return; }
  for (let each = target; each; each = each.parentElement) if (each instanceof HTMLDetailsElement) each.open = true;
};
addEventListener("hashchange", reveal);
reveal();
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const places = [...links.keys()].map((id) => document.getElementById(id)).filter(Boolean);
const mark = () => {
  const seen = places.filter((place) => place.getBoundingClientRect().top < innerHeight * 0.3).pop() ?? places[0];
  for (const [id, link] of links) id === seen?.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current");
};
addEventListener("scroll", mark, { passive: true });
mark();
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const each of closed) each.open = true;
});
addEventListener("afterprint", () => { for (const each of closed) each.open = false; });
