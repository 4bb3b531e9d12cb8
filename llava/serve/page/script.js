"use strict";

// Everything that the page knows lives here; the server keeps nothing.
const state = {
  settings: null,
  image: null, // base64
  shown: [null, null], // of each side {key, name, answer}: stays while its question does
  asked: false,
  running: null, // AbortController of the questions under way
  player: null, // timer while the layers play
};
const SIDES = [0, 1];
const STEP = 600; // ms that a layer is shown

const at = (id) => document.getElementById(id);

function fail(message) {
  at("error").textContent = message;
  at("error").hidden = !message;
}

async function request(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The viewer cannot be reached. Is it still running?");
  }
  const body = await response.json();
  if (!response.ok) throw new Error(body.error);
  return body;
}

async function start() {
  const settings = (state.settings = await request("api/settings"));
  at("model").textContent = `${settings.model}: ${settings.layers} layers, ${settings.about}`;
  at("question").maxLength = settings.most_characters;
  for (const side of SIDES) {
    for (const method of settings.methods) {
      const option = new Option(method.name === "none" ? "unpruned" : method.name, method.name);
      option.selected = method.name === (side ? settings.method : "none");
      at(`method-${side}`).append(option);
    }
    at(`tokens-${side}`).max = settings.most_tokens;
    at(`tokens-${side}`).value = settings.tokens;
    showBudget(side);
  }
}

// What one side is to be asked with.
function chosen(side) {
  const name = at(`method-${side}`).value;
  const method = state.settings.methods.find((one) => one.name === name);
  const tokens = method.budget ? Number(at(`tokens-${side}`).value) : null;
  return { method: name, tokens, settings: at(`settings-${side}`).value.trim() };
}

function called({ method, tokens, settings }) {
  const name = method === "none" ? "Unpruned" : method;
  return [name, tokens === null ? "" : `${tokens} tokens`, settings].filter(Boolean).join(", ");
}

function showBudget(side) {
  const { method, tokens } = chosen(side);
  const { given } = state.settings;
  at(`tokens-${side}`).disabled = tokens === null;
  at(`budget-${side}`).textContent = tokens === null ? "no budget" : `${tokens} tokens`;
  at(`settings-${side}`).disabled = method === "none";
  at(`settings-${side}`).placeholder =
    method === "none" ? "" : method === state.settings.method && given ? given : "FIELD=VALUE, ...";
}

async function take(files) {
  const file = files[0];
  if (!file) return;
  fail("");
  at("file").files = files; // it names what was dropped or pasted as well
  if (file.size > state.settings.most_bytes) {
    fail(`That file is too large; at most ${Math.floor(state.settings.most_bytes / 2 ** 20)} MiB are taken.`);
    return;
  }
  const url = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  state.image = url.slice(url.indexOf(",") + 1);
  if (at("preview").src) URL.revokeObjectURL(at("preview").src);
  at("preview").src = URL.createObjectURL(file);
  at("preview").hidden = false;
  // What is shown is about another picture.
  state.asked = false;
  hide();
  at("question").focus();
}

function hide() {
  pause();
  for (const id of ["answers", "layers", "facts"]) at(id).hidden = true;
}

function ask(wanted, signal) {
  const body = { image: state.image, question: at("question").value, ...wanted };
  return request("api/answer", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
}

async function run() {
  fail("");
  if (!state.image) {
    fail("Choose a picture first.");
    return;
  }
  if (state.running) state.running.abort();
  const running = (state.running = new AbortController());
  const wanted = SIDES.map(chosen);
  const question = at("question").value;
  pause();
  try {
    at("answers").classList.add("busy");
    for (const side of SIDES) {
      const key = JSON.stringify([state.image, question, wanted[side]]);
      // What one side has already, the other need not ask for.
      let known = state.shown.find((one) => one && one.key === key);
      if (!known) {
        at("status").textContent = `Asking ${called(wanted[side])}…`;
        const answer = await ask(wanted[side], running.signal);
        if (state.running !== running) return;
        known = { key, name: called(wanted[side]), answer };
      }
      state.shown[side] = known;
      showAnswer(side);
    }
    state.asked = true;
    showFacts();
    showLayers();
    const { note } = state.shown[1].answer;
    at("status").textContent = note ? `Done. Note: ${note}.` : "Done.";
  } catch (error) {
    if (error.name === "AbortError" || state.running !== running) return;
    at("status").textContent = "";
    fail(error.message);
  } finally {
    if (state.running === running) {
      state.running = null;
      at("answers").classList.remove("busy");
    }
  }
}

const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)}\u00a0%`;
const flops = (part, whole) => `${(part / 1e9).toPrecision(3)}\u00a0G, ${percent(part, whole)}`;
const seconds = (value) => `${value.toFixed(3)}\u00a0s`;
const answers = () => state.shown.map((one) => one.answer);

function element(kind, text, properties = {}) {
  return Object.assign(document.createElement(kind), { textContent: text, ...properties });
}

function showAnswer(side) {
  const { name, answer } = state.shown[side];
  const card = at(`side-${side}`);
  card.querySelector("h2").textContent = name;
  card.querySelector(".text").textContent = answer.text || "(nothing)";
}

const FACTS = [
  ["Visual tokens entering a layer", ({ cost }) => cost.tokens_entering.toFixed(1)],
  ["Visual tokens leaving a layer", ({ cost }) => cost.tokens_leaving.toFixed(1)],
  ["Text tokens", ({ n_text }) => n_text],
  [
    "Prefill FLOPs (published counting)",
    ({ cost }) => flops(cost.prefill_flops, cost.dense_prefill_flops),
  ],
  ["Prefill FLOPs (computed)", ({ cost }) => flops(cost.computed_flops, cost.dense_prefill_flops)],
  ["Cache", ({ cost }) => percent(cost.kv_bytes, cost.dense_kv_bytes)],
  ["First token after", (answer) => seconds(answer.seconds.prefill)],
  [
    "Rest of the answer",
    (answer) => `${seconds(answer.seconds.decode)}, ${answer.new_tokens}\u00a0tokens`,
  ],
];

function showFacts() {
  const both = answers();
  const rows = FACTS.map(([name, value]) => [name, ...both.map(value)]);
  rows.push(["Same answer", "", both[0].text === both[1].text ? "yes" : "no"]);
  for (const name of new Set(both.flatMap(({ complexity }) => Object.keys(complexity)))) {
    const values = both.map(({ complexity }) =>
      name in complexity ? Number(complexity[name]).toPrecision(4) : "",
    );
    rows.push([name === "mi" ? "Mutual information" : name, ...values]);
  }
  const heads = at("facts").querySelectorAll("thead th");
  SIDES.forEach((side) => (heads[side].textContent = state.shown[side].name));
  at("facts").tBodies[0].replaceChildren(
    ...rows.map(([name, ...values]) => {
      const row = document.createElement("tr");
      row.append(element("th", name, { scope: "row" }), ...values.map((v) => element("td", v)));
      return row;
    }),
  );
}

function showLayers() {
  const both = answers();
  const most = Math.max(...both.map(({ n_visual }) => n_visual));
  const bars = both[0].panels.map((_, layer) => {
    const group = document.createElement("div");
    for (const { panels } of both) {
      const bar = document.createElement("div");
      bar.style.height = `${(100 * panels[layer].kept) / most}%`;
      group.append(bar);
    }
    return group;
  });
  at("bars").replaceChildren(...bars);
  for (const side of SIDES) {
    const range = at(`tokens-${side}`);
    range.max = Math.max(range.max, most);
    const images = both[side].views.map(({ columns, title }) => {
      const figure = document.createElement("figure");
      figure.style.flexGrow = columns; // patches of all views are equally large
      figure.append(document.createElement("img"), element("figcaption", title));
      return figure;
    });
    const none = element("p", "The tokens of this model have no places to draw.", {
      className: "hint",
    });
    at(`side-${side}`).querySelector(".views").replaceChildren(...(images.length ? images : [none]));
  }
  at("layer").max = bars.length - 1;
  for (const id of ["answers", "layers", "facts"]) at(id).hidden = false;
  showLayer();
}

function showLayer() {
  const layer = Number(at("layer").value);
  const last = Number(at("layer").max);
  const where = layer < last ? `Layer ${layer}` : "After the last layer";
  const told = answers().map(({ panels, pictures, views, n_visual }, side) => {
    const { kept, merged, nowhere, pictures: numbers } = panels[layer];
    const notes = [merged && `${merged} merged`, nowhere && `${nowhere} not drawn`].filter(Boolean);
    const more = views.length && notes.length ? `, ${notes.join(", ")}` : "";
    const text = `${where}: ${kept} of ${n_visual}${more}`;
    const card = at(`side-${side}`);
    card.querySelectorAll("img").forEach((image, view) => {
      image.src = pictures[numbers[view]];
      image.alt = [text, views[view].title].filter(Boolean).join(", ");
    });
    card.querySelector(".caption").textContent = text;
    return kept;
  });
  at("layer").setAttribute("aria-valuetext", `${where}: ${told.join(" and ")} tokens`);
  [...at("bars").children].forEach((bar, i) => bar.classList.toggle("now", i === layer));
}

function go(layer) {
  at("layer").value = layer; // the slider keeps to its range
  showLayer();
}

function pause() {
  clearInterval(state.player);
  state.player = null;
  at("play").textContent = "Play";
}

function play() {
  if (state.player) return pause();
  const last = Number(at("layer").max);
  if (Number(at("layer").value) === last) go(0);
  at("play").textContent = "Pause";
  state.player = setInterval(() => {
    go(Number(at("layer").value) + 1);
    if (Number(at("layer").value) === last) pause();
  }, STEP);
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  // On a phone answers are below the form.
  if (state.image && matchMedia("(max-width: 62rem)").matches) at("results").scrollIntoView();
  run();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("file").addEventListener("change", () => take(at("file").files));
at("layer").addEventListener("input", () => {
  pause();
  showLayer();
});
at("play").addEventListener("click", play);
at("bars").addEventListener("click", (event) => {
  const layer = [...at("bars").children].findIndex((bar) => bar.contains(event.target));
  if (layer < 0) return;
  pause();
  go(layer);
});
for (const side of SIDES) {
  at(`tokens-${side}`).addEventListener("input", () => showBudget(side));
  for (const name of ["tokens", "method", "settings"]) {
    at(`${name}-${side}`).addEventListener("change", () => {
      if (name === "method") at(`settings-${side}`).value = "";
      showBudget(side);
      if (state.asked) run();
    });
  }
}
document.addEventListener("keydown", (event) => {
  const { key, target } = event;
  if (at("layers").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.closest("textarea, select, button, input:not(#layer)")) return;
  if (key === " ") {
    event.preventDefault(); // of scrolling
    play();
  } else if (target !== at("layer") && (key === "ArrowRight" || key === "ArrowLeft")) {
    pause();
    go(Number(at("layer").value) + (key === "ArrowRight" ? 1 : -1));
  }
});
document.addEventListener("paste", (event) => {
  const { files } = event.clipboardData;
  if (files.length) {
    event.preventDefault();
    take(files);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files);
});

start().catch((error) => fail(error.message));
