// The mosaic: one card per camera, updated twice a second, or once where there are many. A picture is fetched when there
// is a new frame, the one before it has come, and its card can be seen: those of a large fleet would keep a processor busy.

import { ask, listed, picture, said } from "./common.js";
import { enlarge, open, opened } from "./large.js";

const MANY = 12; // cameras: more of them begin as small tiles
const mosaic = document.querySelector("#mosaic");
const small = document.querySelector("#small");
const cards = new Map();
const watcher = new IntersectionObserver((changes) => changes.forEach(({ target, isIntersecting }) => {
  cards.get(target.dataset.name).seen = isIntersecting;
}), { rootMargin: "100px" });

small.onchange = () => mosaic.classList.toggle("small", small.checked);

function makeCard(camera) {
  const card = document.querySelector("#camera").content.firstElementChild.cloneNode(true);
  const known = { card, camera, frame: -1, seen: false, refused: "" };
  card.dataset.name = camera.name;
  card.querySelector("h2").textContent = camera.name;
  card.querySelector(".open").onclick = () => open(camera.name);
  const form = card.querySelector(".classes");
  form.onsubmit = async (event) => {
    event.preventDefault();
    const added = form.added.value.trim();
    if (added && await edit(known, [...names(known), added])) form.added.value = "";
  };
  form.added.oninput = () => { known.refused = ""; };
  mosaic.append(card);
  cards.set(camera.name, known);
  watcher.observe(card);
  return known;
}

// What the motion gate says: whether something moves, and how many frames need not be sent.
function gate({ motion, still }) {
  return motion ? `${still} still · ${motion.moving ? "moving" : "nothing moves"}, ${Math.round(100 * motion.saved)} % saved · ` : "";
}

// What a camera gets of what it asks for, and whether something moves before it.
function brief({ fps, share: { asked, got, moving } }) {
  const rate = asked === null ? `${fps} fps` : `${got} of ${asked} fps`;
  return moving === null ? rate : `${rate} · ${moving ? "moving" : "still"}`;
}

const names = (known) => known.camera.classes.map(({ name }) => name);

async function edit(known, classes) {
  known.refused = await ask(known.camera.name, "classes", classes);
  await update();
  return !known.refused;
}

function show(camera) {
  const known = cards.get(camera.name) ?? makeCard(camera);
  const { card } = known;
  known.camera = camera;
  const live = camera.state === "live";
  card.classList.toggle("dead", !live);
  said(card.querySelector(".state"), camera.state);
  card.querySelector(".state").classList.toggle("live", live);
  said(card.querySelector(".figures"),
    `${camera.fps} fps · ${camera.latency_ms ?? "–"} ms · ${camera.answered} answered · ${gate(camera)}${camera.dropped} dropped · ${camera.failed} failed`);
  said(card.querySelector(".brief"), brief(camera));
  said(card.querySelector(".why"), camera.share.why);
  card.title = camera.share.why;
  card.classList.toggle("below", Boolean(camera.share.why));
  said(card.querySelector(".error"), known.refused || camera.error || camera.motion?.advice || "");
  listed(card.querySelector(".chips"), "#chip", camera.classes, (chip, { name, colour }) => {
    const boxes = camera.exemplars.filter((exemplar) => exemplar.name === name).length;
    said(chip.querySelector("span"), boxes ? `${name} ▣${boxes}` : name);
    chip.style.setProperty("--colour", colour);
    const remove = chip.querySelector("button");
    remove.ariaLabel = `remove ${name}`;
    remove.onclick = () => {
      edit(known, names(known).filter((other) => other !== name));
      card.querySelector("form").added.focus();
    };
  });
  const image = card.querySelector("img");
  image.hidden = camera.frame < 0;
  image.alt = camera.detections.map(({ label, score }) => `${label} ${score}`).join(", ") || "nothing found";
  if (known.seen && !opened() && camera.frame !== known.frame && camera.frame >= 0 && image.complete) {
    known.frame = camera.frame;
    image.src = picture(camera, true);
  }
  enlarge(camera, image.alt);
}

async function update() {
  if (document.hidden) return;
  const total = document.querySelector("#total");
  try {
    const cameras = await (await fetch("api/cameras")).json();
    if (!cards.size && cameras.length > MANY) small.click();
    cameras.forEach(show);
    const count = (text, which) => cameras.some(which) ? ` · ${cameras.filter(which).length} ${text}` : "";
    said(total, `${cameras.length} cameras · ${cameras.reduce((sum, { fps }) => sum + fps, 0).toFixed(1)} fps`
      + count("not live", ({ state }) => state !== "live") + count("below target", ({ share }) => share.why));
  } catch {
    said(total, "the dashboard does not answer");
  }
}

async function busy() {
  const percent = (share) => share === null ? "–" : `${Math.round(100 * share)} %`;
  const gb = (mb) => mb === null ? "–" : (mb / 1024).toFixed(1);
  const output = document.querySelector("#load");
  try {
    const { cpu, servers } = await (await fetch("api/load")).json();
    const gpus = servers.flatMap((server) => server.gpus);
    said(output, [`CPU here ${percent(cpu)}`,
      ...gpus.map(({ use, used_mb, total_mb }, i) => `GPU ${gpus.length > 1 ? i : ""} ${percent(use)}, ${gb(used_mb)} of ${gb(total_mb)} GB`),
      ...gpus.length ? [] : ["GPU –"]].join(" · "));
    output.title = servers.map(({ address, error }) => error ?? `GPU figures from http://${address}/metrics`).join("\n");
  } catch {
    said(output, "");
  }
}

async function every(seconds, what) {
  await what();
  setTimeout(every, 1000 * seconds(), seconds, what);
}

every(() => cards.size > MANY ? 1 : 0.5, update);
every(() => 2, busy);
