"use strict";

/** The page: settings go to a worker, its answers into the pictures, the sentences and the table. */
(() => {
  const BATCHES = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512];
  const KS = [1, 2, 4, 8, 16, 32, 64];
  const STEPS = [1, 2, 4, 6, 8, 10, 20, 30, 50, 100];
  const NAMES = { independent: "independent", assignment: "assignment", nearest: "nearest of k" };
  const SECONDS = 6; // of one passage from noise to data
  const byId = (id) => document.getElementById(id);
  const pairing = makePairing();
  const field = makeField();
  const drawing = makeDrawing(field);
  const starts = pairing.normals(128, pairing.uniforms(4));
  const state = { id: 0, seed: 1, passed: 0, playing: true, batch: null, sampled: null, numbers: {} };
  let colour = drawing.colours();

  const text = `const pairing = (${makePairing})(), field = (${makeField})();
    const work = (${makeWork})(pairing, field, (answer) => postMessage(answer), (next) => setTimeout(next, 0));
    onmessage = (message) => work(message.data);`;
  const worker = new Worker(URL.createObjectURL(new Blob([text], { type: "text/javascript" })));

  /** Return the settings of the form. */
  function settings() {
    return {
      data: byId("data").value,
      coupling: document.querySelector("input[name=coupling]:checked").value,
      batch: BATCHES[byId("batch").value],
      k: KS[byId("k").value],
      steps: STEPS[byId("steps").value],
      seed: state.seed,
    };
  }

  const stepsInWords = (steps) => (steps === 1 ? "1 step" : `${steps} steps`);

  /** Show the settings' values and send them to the worker. */
  function ask() {
    const asked = settings();
    for (const name of ["batch", "k", "steps"]) {
      byId(`${name}-value`).textContent = asked[name];
      byId(name).setAttribute("aria-valuetext", asked[name]);
    }
    byId("k").closest("label").classList.toggle("off", asked.coupling !== "nearest");
    document.querySelector(".steps").textContent = stepsInWords(asked.steps);
    state.id += 1;
    state.numbers = {};
    document.body.dataset.state = "computing";
    worker.postMessage({ ...asked, id: state.id });
    if (state.sampled) resample(state.sampled.guesses);
    tell();
  }

  /** Sample the drawn paths anew. */
  function resample(guesses) {
    const path = field.sample(guesses, starts, settings().steps);
    const data = pairing.data(settings().data, 400, pairing.uniforms(8));
    state.sampled = { guesses, path, data };
    drawing.keepPaths(byId("field"), state.sampled);
  }

  worker.onmessage = ({ data: answer }) => {
    if (answer.id !== state.id) return;
    if (answer.kind === "batch") {
      state.batch = answer;
      drawing.keepPairs(byId("pairs"), answer);
    }
    if (answer.kind === "field") resample(answer.field);
    if (answer.kind === "numbers") {
      state.numbers[answer.coupling] = answer.numbers;
      tell();
    }
    if (answer.kind === "done") document.body.dataset.state = "done";
  };

  /** Return the sentence on what a coupling does under these settings. */
  function rule({ coupling, batch, k }) {
    if (coupling === "independent") return "Independent: each datum gets any noise.";
    if (coupling === "nearest") return `Nearest of ${k}: each datum draws ${k} noises and keeps the nearest.`;
    if (batch === 1) return "Assignment in a batch of 1: nothing to exchange, so this is independent noise.";
    return `Assignment: the ${batch} noises of a batch are shared out so that the sum of squared distances is least.`;
  }

  /** Write the sentences and the table. */
  function tell() {
    const asked = settings();
    const ours = state.numbers[asked.coupling];
    const base = state.numbers.independent;
    const sentences = [rule(asked)];
    if (ours) {
      sentences.push(`Pairs are ${ours.distance.toFixed(2)} apart on average`);
      if (base && asked.coupling !== "independent") {
        const percent = 100 * (1 - ours.distance / base.distance);
        const side = percent < 0 ? "farther" : "nearer";
        sentences[1] += `, ${Math.abs(percent).toFixed(0)} % ${side} than independent ones`;
      }
      sentences[1] += `. Paths are ${ours.bend.toFixed(2)} times as long as straight lines.`;
      sentences.push(`In ${stepsInWords(asked.steps)}, samples end ${ours.error.toFixed(2)} from where 100 steps end.`);
      if (asked.coupling === "nearest") {
        sentences.push(`The kept noise is ${ours.length.toFixed(2)} long on average; normal noise is 1.25 long.`);
      }
    } else sentences.push("Computing.");
    byId("words").textContent = sentences.join(" ");
    const columns = ["distance", "bend", "error", "transport"];
    byId("numbers").replaceChildren(
      ...Object.keys(NAMES).map((name) => {
        const row = document.createElement("tr");
        row.classList.toggle("chosen", name === asked.coupling);
        const numbers = state.numbers[name];
        const cells = columns.map((column) => (numbers ? numbers[column].toFixed(2) : "…"));
        row.innerHTML = `<th scope="row">${NAMES[name]}</th>${cells.map((cell) => `<td>${cell}</td>`).join("")}`;
        return row;
      }),
    );
    byId("floor").textContent = ours
      ? `Two sets of 256 real points are ${ours.floor.toFixed(2)} apart: no sample can be expected to come nearer.`
      : "";
  }

  /** Play, or stop at a time. */
  function play(playing) {
    state.playing = playing;
    byId("play").textContent = playing ? "Pause" : "Play";
    byId("play").setAttribute("aria-pressed", String(playing));
  }

  /** Take a theme and draw in its colours. */
  function theme(dark) {
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    byId("theme").textContent = dark ? "Light colours" : "Dark colours";
    byId("theme").setAttribute("aria-pressed", String(dark));
    redraw();
  }

  /** Draw again what does not move: the theme or the size has changed. */
  function redraw() {
    colour = drawing.colours();
    if (state.batch) drawing.keepPairs(byId("pairs"), state.batch);
    if (state.sampled) drawing.keepPaths(byId("field"), state.sampled);
  }

  let last = 0;
  let spent = 0;
  const frames = [];
  function frame(now) {
    const began = performance.now();
    if (state.playing) state.passed = (state.passed + (now - last) / 1000 / SECONDS) % 1.2;
    last = now;
    const t = Math.max(0, 1 - state.passed); // data rest for a while before the next passage
    if (state.playing) byId("time").value = 100 * (1 - t);
    byId("time-value").textContent = `t = ${t.toFixed(2)}`;
    if (state.batch) drawing.drawPairs(byId("pairs"), state.batch, t, colour);
    if (state.sampled) drawing.drawField(byId("field"), state.sampled, t, colour);
    spent = 0.95 * spent + 0.05 * (performance.now() - began);
    frames.push(now);
    if (now - frames[0] > 2000) {
      const rate = (1000 * (frames.length - 1)) / (now - frames[0]);
      const cost = `a drawing takes ${spent.toFixed(1)} ms`;
      byId("speed").textContent = `Drawn ${rate.toFixed(0)} times a second here; ${cost}.`;
      document.body.dataset.rate = rate.toFixed(1);
      frames.length = 0;
    }
    requestAnimationFrame(frame);
  }

  byId("controls").addEventListener("submit", (event) => event.preventDefault());
  byId("controls").addEventListener("input", (event) => {
    if (event.target.id !== "time") return ask();
    play(false);
    state.passed = event.target.value / 100;
  });
  byId("again").addEventListener("click", () => {
    state.seed += 1;
    ask();
  });
  byId("play").addEventListener("click", () => play(!state.playing));
  byId("theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
  addEventListener("resize", redraw);
  theme(matchMedia("(prefers-color-scheme: dark)").matches);
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
  ask();
  requestAnimationFrame(frame);
})();
