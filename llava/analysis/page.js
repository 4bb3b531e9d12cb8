"use strict";
// Filters of the cards, and the patches that are kept in the layer that a card's slider shows.

const cards = [...document.querySelectorAll("article")];
const filters = document.getElementById("filters");

function applyFilters() {
  const wanted = [...new FormData(filters)].filter(([, value]) => value !== "");
  let shown = 0;
  for (const card of cards) {
    card.hidden = !wanted.every(([name, value]) => card.dataset[name] === value);
    shown += card.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = `${shown} of ${cards.length} shown`;
}

if (filters) {
  filters.addEventListener("change", applyFilters);
  // The controls have their old values until the event is over.
  filters.addEventListener("reset", () => setTimeout(applyFilters));
  filters.addEventListener("submit", (event) => event.preventDefault());
  applyFilters();
}

// Four patches a hexadecimal digit, the first in the lowest bit.
const has = (bits, patch) => (parseInt(bits[patch >> 2], 16) >> (patch & 3)) & 1;

// A path of the cells for which `inside` holds, neighbours in a row joined.
function cells({ columns, rows }, inside) {
  let path = "";
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const start = column;
      while (column < columns && inside(row * columns + column)) column++;
      if (column > start) path += `M${start} ${row}h${column - start}v1H${start}z`;
    }
  }
  return path;
}

function showView(svg, view, layer) {
  const { columns, rows, kept, merged, padding, tokens, of } = view;
  const groups = merged[layer];
  const tinted = new Set(groups.flatMap(([, members]) => members));
  const centres = groups.map(([centre]) => centre).filter((centre) => centre >= 0);
  const draw = (name, path) => svg.querySelector(`.${name}`).setAttribute("d", path);
  const at = (patch) => [patch % columns, Math.floor(patch / columns)];
  const dropped = (patch) => !has(kept[layer], patch);
  draw("dropped", cells(view, dropped));
  draw("tint", cells(view, (patch) => tinted.has(patch) && dropped(patch)));
  draw("frame", centres.map((patch) => `M${at(patch).join(" ")}h1v1h-1z`).join(""));
  let lines = "";
  for (let patch = 0; patch < columns * rows; patch++) {
    const [x, y] = at(patch);
    if (has(padding, patch)) lines += `M${x} ${y + 1}l1 -1`;
  }
  draw("padding", lines);
  if (view.mixed) svg.querySelector(".dropped").style.fillOpacity = 0.78 * (1 - tokens[layer] / of);
  const caption = svg.parentElement.querySelector("figcaption");
  if (caption) caption.textContent = `${view.title}: ${tokens[layer]} of ${of}`;
  return centres.length;
}

function show(card, { counts, views }, layer) {
  const drawings = card.querySelectorAll(".seen");
  const merged = views
    .map((view, number) => showView(drawings[number], view, layer))
    .reduce((sum, count) => sum + count, 0);
  const where = layer < counts.length - 1 ? `layer ${layer}` : "at last";
  const more = merged ? `, ${merged} merged` : "";
  card.querySelector("output").textContent = `${where}: ${counts[layer]}${more}`;
}

const traces = JSON.parse(document.getElementById("traces").textContent);
for (const card of cards) {
  const data = traces[card.id];
  const slider = card.querySelector("input[type=range]");
  if (!data || !slider) continue;
  slider.addEventListener("input", () => show(card, data, Number(slider.value)));
  show(card, data, Number(slider.value));
}
