// Heatmaps answer by pointer and by keyboard: a cursor on the cell, what it says in the line below.
let heatmaps = 0;
for (const maps of document.querySelectorAll(".heats")) {
  const line = maps.nextElementSibling;
  const hint = line.textContent;
  for (const map of maps.querySelectorAll("svg.heat")) {
    const rows = [...map.querySelectorAll(".cells")].filter((row) => row.childElementCount);
    const cells = rows.flatMap((row) => [...row.children]);
    if (!cells.length) continue;
    const at = (cell, key) => Number(cell.getAttribute(key));
    const said = (cell) => cell.firstElementChild.textContent;
    const cursor = document.createElementNS(map.namespaceURI, "rect");
    cursor.setAttribute("class", "cursor");
    const id = `heat-${heatmaps++}`;
    map.setAttribute("role", "grid");
    map.setAttribute("tabindex", "0");
    rows.forEach((row) => row.setAttribute("role", "row"));
    cells.forEach((cell, place) => {
      cell.setAttribute("role", "gridcell");
      cell.setAttribute("aria-label", said(cell));
      cell.id = `${id}-${place}`;
    });
    let current = null;
    const show = (cell) => {
      for (const [key, grown] of [["x", -1], ["y", -1], ["width", 2], ["height", 2]]) {
        cursor.setAttribute(key, at(cell, key) + grown);
      }
      if (!cursor.isConnected) map.append(cursor);
      map.setAttribute("aria-activedescendant", cell.id);
      line.textContent = said(cell);
      line.classList.add("now");
      current = cell;
    };
    const hide = () => {
      if (document.activeElement === map) return;
      cursor.remove();
      map.removeAttribute("aria-activedescendant");
      line.textContent = hint;
      line.classList.remove("now");
    };
    const step = (across, down) => {
      const [x, y] = [at(current, "x"), at(current, "y")];
      const ahead = cells.filter((cell) => across
        ? at(cell, "y") === y && (at(cell, "x") - x) * across > 0
        : at(cell, "x") === x && (at(cell, "y") - y) * down > 0);
      const far = (cell) => Math.abs(at(cell, "x") - x) + Math.abs(at(cell, "y") - y);
      return ahead.sort((a, b) => far(a) - far(b));
    };
    const keys = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1], Home: [-1, 0], End: [1, 0] };
    map.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.altKey || event.metaKey) return;
      event.preventDefault();
      const found = step(...keys[event.key]);
      const next = event.key === "Home" || event.key === "End" ? found.pop() : found.shift();
      if (next) show(next);
    });
    map.addEventListener("focus", () => show(current ?? cells[0]));
    map.addEventListener("blur", hide);
    map.addEventListener("pointerover", (event) => { if (cells.includes(event.target)) show(event.target); });
    map.addEventListener("pointerleave", hide);
  }
}
