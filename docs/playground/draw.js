"use strict";

/** Return the functions that draw both pictures. What does not move is drawn once, on a canvas kept behind. */
function makeDrawing(field) {
  const SPAN = 3.4; // a picture shows [-SPAN, SPAN]
  const ARROWS = 19; // a side
  const PATHS = 128; // samples whose paths are drawn
  const still = new Map(); // canvas -> the canvas of what does not move

  /** Return the colours of the page's theme. */
  function colours() {
    const style = getComputedStyle(document.documentElement);
    const names = ["text", "data", "noise", "line", "path", "arrow"];
    return Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  /** Fit a canvas to its place on the page and return its context and the pixels of a unit. */
  function context(canvas) {
    const side = Math.max(1, Math.round(canvas.clientWidth * Math.min(devicePixelRatio, 2)));
    if (canvas.width !== side) canvas.width = canvas.height = side;
    return [canvas.getContext("2d"), side / (2 * SPAN)];
  }

  /** Return the pixel of a coordinate; y grows upwards in the picture. */
  const at = (value, unit) => (value + SPAN) * unit;
  const up = (value, unit) => (SPAN - value) * unit;

  /** Draw all points in one colour. */
  function dots(pen, unit, points, colour, radius) {
    const size = radius * unit;
    pen.fillStyle = colour;
    pen.beginPath();
    for (let i = 0; i < points.length; i += 2) {
      const [x, y] = [at(points[i], unit), up(points[i + 1], unit)];
      pen.moveTo(x + size, y);
      pen.arc(x, y, size, 0, 7);
    }
    pen.fill();
  }

  /** Draw the lines through each point's places, one array of points a place. */
  function lines(pen, unit, places, count, colour, width) {
    pen.strokeStyle = colour;
    pen.lineWidth = width * unit;
    pen.beginPath();
    for (let i = 0; i < 2 * count; i += 2) {
      pen.moveTo(at(places[0][i], unit), up(places[0][i + 1], unit));
      for (const points of places) pen.lineTo(at(points[i], unit), up(points[i + 1], unit));
    }
    pen.stroke();
  }

  /** Draw what does not move of a picture; `paint` gets a pen, the pixels of a unit and the colours. */
  function keep(canvas, paint) {
    const [, unit] = context(canvas);
    const behind = document.createElement("canvas");
    behind.width = behind.height = canvas.width;
    paint(behind.getContext("2d"), unit, colours());
    still.set(canvas, behind);
  }

  function keepPairs(canvas, { points, noise }) {
    keep(canvas, (pen, unit, colour) => {
      lines(pen, unit, [noise, points], points.length / 2, colour.line, 0.008);
      dots(pen, unit, noise, colour.noise, 0.035);
      dots(pen, unit, points, colour.data, 0.035);
    });
  }

  function keepPaths(canvas, { path, data }) {
    keep(canvas, (pen, unit, colour) => {
      pen.globalAlpha = 0.45;
      dots(pen, unit, data, colour.data, 0.025);
      pen.globalAlpha = 0.85;
      lines(pen, unit, path, PATHS, colour.path, 0.012);
      pen.globalAlpha = 1;
      dots(pen, unit, path[0].subarray(0, 2 * PATHS), colour.noise, 0.03);
    });
  }

  /** Return where points are at time t on paths of straight pieces, evenly spaced in time. */
  function between(path, count, t) {
    const along = Math.min((1 - t) * (path.length - 1), path.length - 1.000001);
    const step = Math.floor(along);
    const share = along - step;
    return path[step].subarray(0, 2 * count).map((value, i) => value + share * (path[step + 1][i] - value));
  }

  /** Draw the direction of sampling at time t on a grid; longer arrows are faster, up to a cell. */
  function arrows(pen, unit, guesses, t, colour) {
    const cell = (2 * SPAN) / ARROWS;
    pen.strokeStyle = colour;
    pen.lineWidth = 0.014 * unit;
    pen.beginPath();
    for (let row = 0; row < ARROWS; row++) {
      for (let column = 0; column < ARROWS; column++) {
        const [x, y] = [(column + 0.5) * cell - SPAN, (row + 0.5) * cell - SPAN];
        const guess = field.guess(guesses, x, y, t);
        const [dx, dy] = [(guess[0] - x) / Math.max(t, 0.03), (guess[1] - y) / Math.max(t, 0.03)];
        const speed = Math.hypot(dx, dy) + 1e-9;
        const size = (0.85 * cell * Math.min(1, speed / 2)) / speed;
        const [ex, ey] = [x + size * dx, y + size * dy];
        pen.moveTo(at(x, unit), up(y, unit));
        pen.lineTo(at(ex, unit), up(ey, unit));
        for (const side of [0.5, -0.5]) {
          pen.moveTo(at(ex, unit), up(ey, unit));
          pen.lineTo(at(ex - 0.25 * size * (dx - side * dy), unit), up(ey - 0.25 * size * (dy + side * dx), unit));
        }
      }
    }
    pen.stroke();
  }

  function drawPairs(canvas, { points, noise }, t, colour) {
    const [pen, unit] = context(canvas);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(still.get(canvas), 0, 0, canvas.width, canvas.height);
    dots(pen, unit, between([noise, points], points.length / 2, t), colour.text, 0.022);
  }

  function drawField(canvas, { path, guesses }, t, colour) {
    const [pen, unit] = context(canvas);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    arrows(pen, unit, guesses, t, colour.arrow);
    pen.drawImage(still.get(canvas), 0, 0, canvas.width, canvas.height);
    dots(pen, unit, between(path, PATHS, t), colour.text, 0.03);
  }

  return { colours, keepPairs, keepPaths, drawPairs, drawField };
}
