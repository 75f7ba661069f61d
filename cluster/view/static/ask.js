// The page that asks about images. The server renders the answers; this sends images and places what comes back.
"use strict";

const find = (name) => document.getElementById(name);
const answers = find("answers");
const numRuns = Number(answers.dataset.runs);
let asked = null; // {file} or {sample}
let turn = 0; // answers to earlier questions are dropped

function say(text) {
  find("problem").hidden = true;
  find("state").textContent = text;
}

function complain(error) {
  find("state").textContent = "";
  find("problem").hidden = false;
  find("problem").textContent = error.message;
}

async function call(path, options = {}) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw new Error("The application does not answer. Is the process still running?");
  }
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({ error: `${response.status} ${response.statusText}` }));
  throw new Error(problem.error);
}

// Both an image file and an image of the data set are asked about in the same way.
function question(kind, parameters, accept) {
  const query = new URLSearchParams(parameters);
  const headers = { Accept: accept };
  if (asked.file) {
    headers["Content-Type"] = "application/octet-stream";
    return call(`/${kind === "answer" ? "ask" : kind}?${query}`, { method: "POST", body: asked.file, headers });
  }
  return call(`/samples/${asked.sample}/${kind}?${query}`, { headers });
}

async function ask() {
  if (!asked) {
    complain(new Error("Choose an image first."));
    return;
  }
  const own = ++turn;
  say("Asking …");
  answers.setAttribute("aria-busy", "true");
  try {
    const filters = Object.fromEntries(new FormData(find("filters")));
    const texts = [];
    for (let run = 0; run < numRuns; run++) {
      texts.push(await (await question("answer", { ...filters, run }, "text/html")).text());
    }
    if (own !== turn) return;
    answers.innerHTML = texts.join("");
    const verdict = answers.querySelector(".verdict").textContent.replace(/\s+/g, " ").trim();
    say(`Answer: ${verdict}`);
    answers.focus({ preventScroll: true });
    answers.setAttribute("aria-busy", "false");
    for (const section of answers.querySelectorAll(".answer")) await drawMaps(section, own);
  } catch (error) {
    if (own === turn) complain(error);
  } finally {
    if (own === turn) answers.setAttribute("aria-busy", "false");
  }
}

async function drawMaps(section, own) {
  const cards = [...section.querySelectorAll(".neighbours > li")];
  const note = section.querySelector(".mapnote");
  if (cards.length === 0) return;
  note.textContent = "Computing activation maps …";
  let maps;
  try {
    const ids = cards.slice(0, 50).map((card) => card.dataset.sample).join(",");
    maps = await (await question("maps", { ids, run: section.dataset.run }, "application/json")).json();
  } catch (error) {
    note.textContent = error.message;
    return;
  }
  if (own !== turn) return;
  const picture = section.querySelector(".query img");
  maps.forEach((map, place) => {
    const card = cards[place];
    if (map.is_same) {
      card.querySelector("figcaption").textContent = "image; the network sees no difference, so there is no map";
      return;
    }
    const figure = card.querySelector(".own");
    const copy = picture.cloneNode();
    figure.querySelector(".mapped").append(copy);
    figure.hidden = false;
    lay(card.querySelector(".result"), map.result, "image");
    lay(figure, map.query, "your image");
  });
  note.textContent = `${maps[0].note} Each map is scaled to its own values, which are given below it.`;
  section.querySelector(".mapbar").hidden = false;
  setStrength(section);
}

function lay(figure, map, words) {
  const image = new Image();
  image.src = map.picture;
  image.className = "map";
  image.alt = "";
  figure.querySelector(".mapped").append(image);
  figure.querySelector("figcaption").textContent = `${words}, map ${digits(map.low)} … ${digits(map.high)}`;
}

const digits = (value) =>
  value !== 0 && Math.abs(value) < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(2)));

function setStrength(section) {
  const value = Number(section.querySelector(".strength").value);
  section.classList.toggle("is-mapped", value > 0);
  for (const map of section.querySelectorAll(".map")) map.style.opacity = value / 100;
}

function choose(file) {
  asked = { file };
  history.pushState(null, "", location.pathname);
  ask();
}

function chooseSample(sample) {
  asked = { sample };
  history.pushState(null, "", `#sample=${sample}`);
  ask();
}

function followAddress() {
  const found = /^#sample=(\d+)$/.exec(location.hash);
  if (found) {
    asked = { sample: Number(found[1]) };
    ask();
  }
}

let shown = 0;
async function showSamples(isMore) {
  const fields = Object.fromEntries(new FormData(find("choose")));
  if (!isMore) {
    shown = 0;
    find("samples").replaceChildren();
  }
  try {
    const query = new URLSearchParams({ ...fields, start: shown });
    const samples = await (await call(`/samples?${query}`)).json();
    for (const sample of samples) {
      const button = document.createElement("button");
      const image = new Image();
      button.type = "button";
      button.className = "next";
      button.dataset.sample = sample.id;
      image.src = `/samples/${sample.id}/image`;
      image.alt = `image ${sample.key}, `;
      image.loading = "lazy";
      button.append(image, sample.label);
      const item = document.createElement("li");
      item.append(button);
      find("samples").append(item);
    }
    shown += samples.length;
    find("more").hidden = samples.length < 48;
    say(shown ? `${shown} images are shown.` : "No image matches.");
  } catch (error) {
    complain(error);
  }
}

function showClasses(classes) {
  find("classes").replaceChildren(...classes.map((one) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Remove";
    button.setAttribute("aria-label", `Remove the class ${one.name}`);
    button.onclick = async () => {
      try {
        showClasses(await (await call(`/novel?${new URLSearchParams({ name: one.name })}`, { method: "DELETE" })).json());
        if (asked) ask();
      } catch (error) {
        complain(error);
      }
    };
    item.append(`${one.name}: ${one.images} image${one.images === 1 ? "" : "s"}`, button);
    return item;
  }));
}

async function addClass() {
  const name = find("name").value;
  say("Adding the class …");
  try {
    for (const file of find("support").files) {
      const headers = { "Content-Type": "application/octet-stream" };
      const query = new URLSearchParams({ name });
      showClasses(await (await call(`/novel?${query}`, { method: "POST", body: file, headers })).json());
    }
    find("add").reset();
    say(`The class ${name} is known now.`);
    if (asked) ask();
  } catch (error) {
    complain(error);
  }
}

function imageOf(transfer) {
  return [...(transfer?.files ?? [])][0];
}

find("file").addEventListener("change", (event) => event.target.files[0] && choose(event.target.files[0]));
find("filters").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
find("choose").addEventListener("submit", (event) => { event.preventDefault(); showSamples(false); });
find("chooser").addEventListener("toggle", () => find("chooser").open && shown === 0 && showSamples(false));
find("more").addEventListener("click", () => showSamples(true));
find("add").addEventListener("submit", (event) => { event.preventDefault(); addClass(); });
document.addEventListener("paste", (event) => imageOf(event.clipboardData) && choose(imageOf(event.clipboardData)));
document.addEventListener("dragover", (event) => { event.preventDefault(); find("drop").classList.add("over"); });
document.addEventListener("dragleave", () => find("drop").classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  find("drop").classList.remove("over");
  if (imageOf(event.dataTransfer)) choose(imageOf(event.dataTransfer));
  else complain(new Error("What was dropped is not a file. Save the image first, or copy and paste it."));
});
document.addEventListener("click", (event) => {
  const button = event.target.closest(".next");
  if (button) chooseSample(Number(button.dataset.sample));
});
document.addEventListener("input", (event) => {
  if (event.target.matches(".strength")) setStrength(event.target.closest(".answer"));
});
window.addEventListener("popstate", followAddress);
call("/novel").then((response) => response.json()).then(showClasses, complain);
followAddress();
