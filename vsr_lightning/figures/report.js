"use strict";

// Tables: the button in a header sorts upwards, and downwards when it is pressed again. Empty cells stay last.

function makeSortable(table) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
      headers.forEach((other) => other.setAttribute("aria-sort", other === header ? direction : "none"));
      const compare = header.classList.contains("number") ? compareNumbers : compareTexts;
      const sign = direction === "ascending" ? 1 : -1;
      const value = (row) => row.cells[column].dataset.value;
      const rows = [...table.tBodies[0].rows];
      rows.sort((a, b) => emptyLast(value(a), value(b)) || sign * compare(value(a), value(b)));
      table.tBodies[0].append(...rows);
    });
  });
}

const compareNumbers = (a, b) => Number(a) - Number(b) || 0; // infinity less infinity is NaN
const compareTexts = (a, b) => a.localeCompare(b, "en", { numeric: true });
const emptyLast = (a, b) => (a === "") - (b === "");

// Clips: controls choose a condition and a frame; each panel shows that frame of a strip of frames side by side.

const PLAY_MILLISECONDS = 250;
const CALM_MILLISECONDS = 1000; // for those who asked their system for less motion

class Viewer {
  constructor(element) {
    const data = JSON.parse(element.querySelector("script").textContent);
    this.clips = data.clips;
    this.values = data.values; // of each setting, as texts
    this.sprites = data.sprites; // data URIs
    this.images = new Map(); // by their place in sprites, decoded when first shown
    this.settings = [...element.querySelectorAll("[data-column]")];
    this.frame = element.querySelector(".frame");
    this.play = element.querySelector(".play");
    this.timeline = element.querySelector(".timeline");
    this.status = element.querySelector(".status");
    this.panels = [...element.querySelectorAll("[data-panel]")];

    for (const setting of this.settings) {
      setting.value = this.clips[0].choice[setting.dataset.column];
      setting.addEventListener("input", () => this.chooseClip(setting));
    }
    this.frame.value = 1;
    this.frame.addEventListener("input", () => this.showFrame());
    this.play.addEventListener("click", () => this.togglePlay());
    this.chooseClip();
  }

  // Not every combination was measured: what was just changed counts most, then as much of the rest as possible.
  chooseClip(changed) {
    const matches = (clip, setting) => clip.choice[setting.dataset.column] === Number(setting.value);
    const score = (clip) =>
      this.settings.reduce((sum, setting) => sum + matches(clip, setting) * (setting === changed ? 1000 : 1), 0);
    this.clip = this.clips.reduce((best, clip) => (score(clip) > score(best) ? clip : best));
    const exact = this.settings.every((setting) => matches(this.clip, setting));
    for (const setting of this.settings) this.showSetting(setting);
    this.status.textContent = describeClip(this.clip, exact);
    this.frame.max = this.clip.length;
    this.timeline.replaceChildren(...Array.from({ length: this.clip.length }, (_, index) => this.mark(index)));
    this.showFrame();
  }

  showSetting(setting) {
    if (setting.type !== "range") return;
    const value = this.values[setting.dataset.column][Number(setting.value)];
    setting.setAttribute("aria-valuetext", value);
    setting.nextElementSibling.textContent = value;
  }

  mark(index) {
    const mark = document.createElement("li");
    mark.textContent = index + 1;
    mark.classList.toggle("observed", this.clip.frames.includes(index));
    return mark;
  }

  showFrame() {
    const index = Number(this.frame.value) - 1;
    const observed = this.clip.frames.includes(index);
    const position = `${index + 1} of ${this.clip.length}`;
    this.frame.setAttribute("aria-valuetext", `${position}, ${observed ? "observed" : "not observed"}`);
    this.frame.nextElementSibling.textContent = position;
    [...this.timeline.children].forEach((mark, other) => mark.classList.toggle("current", other === index));
    for (const panel of this.panels) this.showPanel(panel, index, observed);
  }

  showPanel(panel, index, observed) {
    const name = panel.dataset.panel;
    const canvas = panel.querySelector("canvas");
    let note = this.clip.notes[name]?.[index] ?? "";
    if (name === "observed") {
      note = observed ? "" : "not this frame";
      panel.classList.toggle("observed", observed);
      panel.classList.toggle("unobserved", !observed);
    }
    panel.querySelector(".note").textContent = note;
    canvas.setAttribute("aria-label", [name, `frame ${index + 1}`, note].filter(Boolean).join(", "));
    panel.hidden = !(name in this.clip.sprites); // other clips of the run have it
    if (panel.hidden) return;
    const image = this.image(this.clip.sprites[name]);
    if (image.complete) drawFrame(canvas, image, index, this.clip.length, name !== "observed" || observed);
  }

  image(sprite) {
    if (!this.images.has(sprite)) {
      const image = new Image();
      image.addEventListener("load", () => this.showFrame());
      image.src = this.sprites[sprite];
      this.images.set(sprite, image);
    }
    return this.images.get(sprite);
  }

  togglePlay() {
    if (this.timer) {
      clearInterval(this.timer);
      this.timer = undefined;
    } else {
      const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
      this.timer = setInterval(() => this.step(), calm ? CALM_MILLISECONDS : PLAY_MILLISECONDS);
    }
    this.play.textContent = this.timer ? "Pause" : "Play";
  }

  step() {
    this.frame.value = (Number(this.frame.value) % this.clip.length) + 1;
    this.showFrame();
  }
}

function describeClip(clip, exact) {
  const frames = clip.frames.map((index) => index + 1).sort((a, b) => a - b).join(", ");
  const shown = exact ? "" : `No clip of this combination. Shown: ${clip.label}. `;
  return `${shown}Observed: frame${clip.frames.length === 1 ? "" : "s"} ${frames} of ${clip.length}.`;
}

// image: `length` frames side by side
function drawFrame(canvas, image, index, length, visible) {
  canvas.width = image.naturalWidth / length; // which also clears it
  canvas.height = image.naturalHeight;
  if (visible) canvas.getContext("2d").drawImage(image, -index * canvas.width, 0);
}

document.querySelectorAll("table.sortable").forEach(makeSortable);
document.querySelectorAll(".viewer").forEach((element) => new Viewer(element));
