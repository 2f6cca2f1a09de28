"use strict";
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  const readout = document.getElementById("readout");

  const made = (tag, text, className) => {
    const one = document.createElement(tag);
    one.textContent = text;
    if (className) one.className = className;
    return one;
  };

  // The legend: a button hides its lines, values and matrices in every comparison.
  for (const button of all("[data-toggle]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      for (const one of all(`[data-series="${button.dataset.toggle}"]`)) one.toggleAttribute("hidden", !on);
    });
  }

  // The choice of a comparison, for example of T.
  for (const button of all("[data-choose]")) {
    button.addEventListener("click", () => {
      for (const one of all("[data-choose]")) one.setAttribute("aria-pressed", one === button);
      for (const one of all("[data-view]")) one.hidden = one.dataset.view !== button.dataset.choose;
      hide();
    });
  }

  // The read-out stands beside the place it tells of, on the side where there is room.
  const show = (lines, x, above, below) => {
    readout.replaceChildren(...lines);
    readout.hidden = false;
    const wide = document.documentElement.clientWidth, own = readout.offsetWidth;
    const left = x + 14 + own < wide - 4 ? x + 14 : x - 14 - own;
    readout.style.left = `${Math.max(4, Math.min(left, wide - own - 4)) + scrollX}px`;
    const top = above - readout.offsetHeight;
    readout.style.top = `${(top < 4 ? below : top) + scrollY}px`;
  };
  const hide = () => {
    readout.hidden = true;
    for (const one of all(".cursor")) one.toggleAttribute("hidden", true);
  };

  const onPaper = (svg, event) => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    return [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale, box, scale];
  };

  // Lines: the nearest judgement, and what each visible line says there.
  const tell = (svg, place) => {
    const x = Number(svg.dataset.x.split(" ")[place]);
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const said = all(".line", svg).filter((one) => !one.hasAttribute("hidden")).flatMap((one) => {
      const [value, low, high, orders] = one.dataset.said.split("|")[place].split(";");
      if (!value) return [];
      const spread = low ? ` (${low} to ${high}${orders ? `, ${orders}` : ""})` : "";
      const words = value === "×" ? "not finite" : value + svg.dataset.unit + spread;
      const line = made("p", "", [...one.classList].filter((name) => name !== "line").join(" "));
      line.append(made("i", ""), made("bdi", one.dataset.label), made("span", words));
      return [line];
    });
    hide();
    svg.place = place;
    const cursor = svg.querySelector(".cursor");
    cursor.setAttribute("transform", `translate(${x} 0)`);
    cursor.toggleAttribute("hidden", false);
    const at = Number(svg.dataset.at.split(" ")[place]);
    const title = at ? `after ${at.toLocaleString("en")} ${at === 1 ? "edit" : "edits"}` : "unedited";
    show([made("b", title), ...said], box.left + x * scale, box.top + 2, box.bottom);
  };
  for (const svg of all(".chart svg")) {
    const places = svg.dataset.x.split(" ").map(Number);
    svg.addEventListener("pointermove", (event) => {
      const [x] = onPaper(svg, event);
      const far = places.map((one) => Math.abs(one - x));
      tell(svg, far.indexOf(Math.min(...far)));
    });
    svg.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const from = svg.place ?? (step > 0 ? -1 : places.length);
      tell(svg, Math.max(0, Math.min(places.length - 1, from + step)));
    });
  }

  // The matrix: the block and the judgement under the pointer.
  for (const svg of all(".matrix svg")) {
    const [left, top, wide, high] = svg.dataset.box.split(" ").map(Number);
    const rows = svg.dataset.rows.split(" "), cells = svg.dataset.cells.split(" ");
    const blocks = svg.dataset.blocks.split(" ").map(Number);
    svg.addEventListener("pointermove", (event) => {
      const [x, y] = onPaper(svg, event);
      const row = Math.floor((y - top) / high * rows.length);
      const column = Math.floor((x - left) / wide * (blocks.length - 1));
      const value = (cells[row] ?? "").slice(2 * column, 2 * column + 2);
      if (column < 0 || !value || value === "--") return hide();
      const first = blocks[column] + 1, last = blocks[column + 1];
      const edits = first === last ? `edit ${first}` : `edits ${first} to ${last}`;
      const lines = [made("b", `${parseInt(value, 16)} % hold`), made("p", `${edits}, judged after ${rows[row]}`)];
      show(lines, event.clientX, event.clientY - 8, event.clientY + 20);
    });
  }

  for (const svg of all(".chart svg, .matrix svg")) {
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
  }
})();
