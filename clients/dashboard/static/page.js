// The figures of all cameras flow in twice a second; a card per camera is kept up to date, and its picture is fetched when there is a new one.

const mosaic = document.querySelector("#mosaic");
const large = document.querySelector("#large");
const cards = new Map();
let shown = null;

const called = (d) => `${d.label}${d.track ? ` #${d.track}` : ""} ${d.score}`;
const at = (name, what) => `api/cameras/${encodeURIComponent(name)}/${what}`;

function makeCard(camera) {
  const card = document.querySelector("#camera").content.firstElementChild.cloneNode(true);
  card.querySelector("h2").textContent = camera.name;
  card.querySelector(".open").onclick = () => { shown = camera.name; large.showModal(); };
  const form = card.querySelector("form");
  form.onsubmit = async (event) => {
    event.preventDefault();
    const names = form.classes.value.split(",").map((name) => name.trim()).filter(Boolean);
    const answer = await fetch(at(camera.name, "classes"), {
      method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(names),
    });
    const body = await answer.json();
    form.classes.setCustomValidity(answer.ok ? "" : String(body.detail));
    form.classes.reportValidity();
    if (answer.ok) form.classes.value = body.classes.join(", ");
  };
  form.classes.oninput = () => form.classes.setCustomValidity("");
  form.classes.value = camera.classes.join(", ");
  mosaic.append(card);
  return card;
}

function show(camera) {
  if (!cards.has(camera.name)) cards.set(camera.name, { card: makeCard(camera), frame: -1 });
  const known = cards.get(camera.name);
  const { card } = known;
  const live = camera.state === "live";
  card.classList.toggle("dead", !live);
  const state = card.querySelector(".state");
  state.textContent = camera.state;
  state.classList.toggle("live", live);
  card.querySelector(".figures").textContent =
    `${camera.fps} fps · ${camera.latency_ms ?? "–"} ms · ${camera.answered} answered · ${camera.dropped} dropped · ${camera.failed} failed`;
  card.querySelector(".error").textContent = live ? "" : camera.error;
  const image = card.querySelector("img");
  image.hidden = camera.frame < 0;
  image.alt = camera.detections.map(called).join(", ") || "nothing found";
  if (camera.frame !== known.frame && camera.frame >= 0) {
    known.frame = camera.frame;
    image.src = at(camera.name, `frame.jpg?n=${camera.frame}`);
  }
  if (large.open && shown === camera.name) enlarge(camera, image);
}

function enlarge(camera, image) {
  large.querySelector("h2").textContent = camera.name;
  large.querySelector("img").src = image.src;
  large.querySelector("img").alt = image.alt;
  large.querySelector("ul").replaceChildren(...camera.detections.map((d) => {
    const line = document.createElement("li");
    line.textContent = called(d);
    return line;
  }));
  large.querySelector("p").textContent = Object.entries(camera.stage_ms).map(([stage, ms]) => `${stage} ${ms} ms`).join(" · ");
}

async function update() {
  const total = document.querySelector("#total");
  try {
    const cameras = await (await fetch("api/cameras")).json();
    cameras.forEach(show);
    total.textContent = `${cameras.length} cameras · ${cameras.reduce((sum, c) => sum + c.fps, 0).toFixed(1)} fps`;
  } catch {
    total.textContent = "the dashboard does not answer";
  }
  setTimeout(update, 500);
}

update();
