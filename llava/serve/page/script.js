"use strict";

// Everything that the page knows lives here; the server keeps nothing.
const state = {
  settings: null,
  image: null, // base64
  dense: null, // {key, answer}: stays while only budget and method change
  pruned: null,
  asked: false,
  running: null, // AbortController of the question under way
};

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
  at("model").textContent = `${settings.model}: ${settings.layers} layers, ${settings.patches} patches`;
  for (const method of settings.methods) {
    const option = new Option(method.name, method.name);
    option.selected = method.name === settings.method;
    at("method").append(option);
  }
  at("question").maxLength = settings.most_characters;
  at("tokens").max = settings.patches;
  at("tokens").value = settings.tokens;
  showBudget();
}

function takesBudget() {
  const chosen = at("method").value;
  return state.settings.methods.find((method) => method.name === chosen).budget;
}

function showBudget() {
  const takes = takesBudget();
  at("tokens").disabled = !takes;
  at("budget").textContent = takes ? `${at("tokens").value} tokens` : "none to set";
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
  at("answers").hidden = at("patches").hidden = true;
  at("question").focus();
}

function ask(method, tokens, signal) {
  const body = { image: state.image, question: at("question").value, method, tokens };
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
  const method = at("method").value;
  const tokens = takesBudget() ? Number(at("tokens").value) : null;
  const key = state.image + "\n" + at("question").value;
  try {
    at("answers").classList.add("busy");
    if (!state.dense || state.dense.key !== key) {
      at("status").textContent = "Asking without pruning…";
      const answer = await ask("none", null, running.signal);
      if (state.running !== running) return;
      state.dense = { key, answer };
      at("answers").hidden = false;
      showAnswer(at("dense"), answer, answer);
    }
    at("status").textContent = `Asking with ${method}…`;
    const answer = await ask(method, tokens, running.signal);
    if (state.running !== running) return;
    state.pruned = answer;
    state.asked = true;
    at("pruned").querySelector("h2").textContent =
      tokens === null ? `Pruned by ${method}` : `Pruned by ${method}, ${tokens} tokens`;
    showAnswer(at("pruned"), answer, state.dense.answer);
    showPatches();
    at("status").textContent = answer.note ? `Done. Note: ${answer.note}.` : "Done.";
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

const percent = (part, whole) => `${((100 * part) / whole).toFixed(1)} %`;
const flops = (part, whole) => `${(part / 1e9).toPrecision(3)} G, ${percent(part, whole)}`;
const seconds = (value) => `${value.toFixed(3)} s`;

function showAnswer(card, answer, dense) {
  card.querySelector(".text").textContent = answer.text || "(nothing)";
  const { cost } = answer;
  const rows = [
    ["Visual tokens entering a layer", cost.tokens_entering.toFixed(1)],
    ["Visual tokens leaving a layer", cost.tokens_leaving.toFixed(1)],
    ["Text tokens", answer.n_text],
    ["Prefill FLOPs (published counting)", flops(cost.prefill_flops, cost.dense_prefill_flops)],
    ["Prefill FLOPs (computed)", flops(cost.computed_flops, cost.dense_prefill_flops)],
    ["Cache", percent(cost.kv_bytes, cost.dense_kv_bytes)],
    ["First token after", seconds(answer.seconds.prefill)],
    ["Rest of the answer", `${seconds(answer.seconds.decode)}, ${answer.new_tokens} tokens`],
  ];
  if (answer !== dense) rows.push(["Same answer", answer.text === dense.text ? "yes" : "no"]);
  for (const [name, value] of Object.entries(answer.complexity)) {
    rows.push([name === "mi" ? "Mutual information" : name, Number(value).toPrecision(4)]);
  }
  const list = card.querySelector("dl");
  list.replaceChildren();
  for (const [name, value] of rows) {
    const term = document.createElement("dt");
    const detail = document.createElement("dd");
    term.textContent = name;
    detail.textContent = value;
    list.append(term, detail);
  }
}

function showPatches() {
  const { panels } = state.pruned;
  const bars = panels.map((panel) => {
    const bar = document.createElement("div");
    bar.style.height = `${(100 * panel.kept) / state.settings.patches}%`;
    return bar;
  });
  at("bars").replaceChildren(...bars);
  at("layer").max = panels.length - 1;
  at("patches").hidden = false;
  showLayer();
}

function showLayer() {
  const { panels, pictures } = state.pruned;
  const layer = Number(at("layer").value);
  const panel = panels[layer];
  const where = layer < panels.length - 1 ? `Layer ${layer}` : "After the last layer";
  const merged = panel.merged ? `, ${panel.merged} of them merged` : "";
  const text = `${where}: ${panel.kept} of ${state.settings.patches} patches${merged}`;
  at("picture").src = pictures[panel.picture];
  at("picture").alt = text;
  at("caption").textContent = text;
  at("layer").setAttribute("aria-valuetext", text);
  [...at("bars").children].forEach((bar, i) => bar.classList.toggle("now", i === layer));
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("form").requestSubmit();
  }
});
at("file").addEventListener("change", () => take(at("file").files));
at("tokens").addEventListener("input", showBudget);
at("layer").addEventListener("input", showLayer);
for (const id of ["tokens", "method"]) {
  at(id).addEventListener("change", () => {
    showBudget();
    if (state.asked) run();
  });
}
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
