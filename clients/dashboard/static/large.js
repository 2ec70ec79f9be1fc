// The large view of one camera: its figures, and boxes drawn on its image: exemplars of a class, or masked regions.

import { ask, listed, picture, said } from "./common.js";

const LEAST_SIDE = 0.01; // share of the frame; a smaller box is a click
const large = document.querySelector("#large");
const part = (selector) => large.querySelector(selector);
const frame = part(".frame");
const form = part(".show");
let shown = null; // the camera's name
let camera = null; // its latest figures
let drag = null; // its start and the box so far; the image is not updated while dragging

export function open(name) {
  shown = name;
  said(part(".error"), "");
  large.showModal();
}

export const opened = () => large.open;

export function enlarge(figures, alt) {
  if (!large.open || figures.name !== shown) return;
  camera = figures;
  said(part("h2"), camera.name);
  const hidden = camera.hidden.length ? `, hidden: ${camera.hidden.map((id) => `#${id}`).join(" ")}` : "";
  said(part(".state"), camera.state + hidden);
  part(".state").classList.toggle("live", camera.state === "live");
  said(part(".stages"), Object.entries(camera.stage_ms).map(([stage, ms]) => `${stage} ${ms} ms`).join(" · "));
  listed(form.word, "#option", camera.classes, (option, { name }) => said(option, name));
  listed(part(".exemplars"), "#line", camera.exemplars, (line, exemplar) => {
    said(line.querySelector("span"), `${exemplar.like ? "like" : "unlike"} ${exemplar.name}: ${percent(exemplar.box)}`);
    button(line, "clear", () => send(camera.exemplars.filter((other) => other !== exemplar)));
  });
  listed(part(".regions"), "#line", regions(), (line, corners) => {
    said(line.querySelector("span"), `masked: ${corners.map(percent).join(", ")}`);
    button(line, "clear", () => mask(regions().filter((other) => other !== corners)));
  });
  part(".clear").hidden = !camera.exemplars.length;
  listed(part(".found"), "#line", camera.detections, (line, found) => {
    said(line.querySelector("span"), `${found.label}${found.track === undefined ? "" : ` #${found.track}`} ${found.score}`);
    button(line, `${form.sign.value} this`, () => put(found.label, found.box));
  });
  if (drag) return;
  frame.hidden = camera.frame < 0;
  const image = part("img");
  const source = picture(camera, false);
  image.alt = alt;
  if (image.complete && image.getAttribute("src") !== source) image.src = source;
  draw(camera.exemplars);
  listed(part(".masks"), "#mask", regions(), (element, corners) => {
    element.style.clipPath = `polygon(${corners.map(([x, y]) => `${100 * x}% ${100 * y}%`).join(", ")})`;
  });
}

const percent = (box) => box.map((side) => `${Math.round(100 * side)}`).join(" ") + " %";

function button(line, text, act) {
  said(line.querySelector("button"), text);
  line.querySelector("button").onclick = act;
}

function draw(exemplars) {
  listed(part(".boxes"), "#box", exemplars, (element, { box: [x0, y0, x1, y1], like, masked = false }) => {
    element.classList.toggle("unlike", !like);
    element.classList.toggle("masked", masked);
    Object.assign(element.style, { left: `${100 * x0}%`, top: `${100 * y0}%`, width: `${100 * (x1 - x0)}%`, height: `${100 * (y1 - y0)}%` });
  });
}

const likes = () => form.sign.value === "like";
const masks = () => form.sign.value === "masked";
const regions = () => camera.motion?.regions ?? [];
const put = (name, box) => masks() ? mask([...regions(), rectangle(box)]) : send([...camera.exemplars, { name, box, like: likes() }]);
const within = (share) => Math.min(1, Math.max(0, share));

function rectangle(box) { // a found one may reach over the edge
  const [x0, y0, x1, y1] = box.map(within);
  return [[x0, y0], [x1, y0], [x1, y1], [x0, y1]];
}

async function send(exemplars) {
  said(part(".error"), await ask(shown, "exemplars", exemplars));
}

async function mask(polygons) {
  said(part(".error"), await ask(shown, "regions", polygons));
}

part("img").onload = ({ target }) => frame.style.setProperty("--aspect", target.naturalWidth / target.naturalHeight);
part(".clear").onclick = () => send([]);
form.onsubmit = (event) => event.preventDefault();

function point(event) {
  const { left, top, width, height } = frame.getBoundingClientRect();
  return [within((event.clientX - left) / width), within((event.clientY - top) / height)];
}

frame.onpointerdown = (event) => {
  if (!event.isPrimary || event.button) return;
  frame.setPointerCapture(event.pointerId);
  drag = { from: point(event), box: null };
};

frame.onpointermove = (event) => {
  if (!drag) return;
  const [[x0, y0], [x1, y1]] = [drag.from, point(event)];
  drag.box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  draw([...camera.exemplars, { box: drag.box, like: likes(), masked: masks() }]);
};

frame.onpointerup = () => {
  const box = drag?.box;
  drag = null;
  if (box && Math.min(box[2] - box[0], box[3] - box[1]) >= LEAST_SIDE) put(form.word.value, box);
};

frame.onpointercancel = () => { drag = null; };
