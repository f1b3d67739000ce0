"use strict";

/**
 * Return the functions that learn a field from pairs and sample from it.
 *
 * Time t is 1 at noise and 0 at data; a pair (x, noise) lies at x_t = (1 - t) x + t noise. The field is a kernel
 * regression: its guess D(x_t, t) is the mean of the data x whose x_t lie near, and its velocity is (x_t - D) / t.
 */
function makeField() {
  const NODES = 64; // a side of the grid
  const REACH = 4; // the grid spans [-REACH, REACH]
  const LEVELS = 33; // times 0, 1/32, ..., 1
  const WIDTH = 0.15; // standard deviation of the kernel
  const CELL = (2 * REACH) / (NODES - 1);
  const SIZE = NODES * NODES;

  /** Return the weights of a Gaussian, so many cells wide. */
  function gaussian(cells) {
    const radius = Math.ceil(3 * cells);
    return Float64Array.from({ length: 2 * radius + 1 }, (_, i) => Math.exp(-0.5 * ((i - radius) / cells) ** 2));
  }

  const NARROW = gaussian(WIDTH / CELL);
  const WIDE = gaussian((4 * WIDTH) / CELL);

  /** Blur a grid by one kernel along both axes. */
  function blur(grid, kernel) {
    const radius = (kernel.length - 1) / 2;
    let source = grid;
    for (const [step, line] of [[1, NODES], [NODES, 1]]) {
      const blurred = new Float64Array(SIZE);
      for (let a = 0; a < NODES; a++) {
        for (let b = 0; b < NODES; b++) {
          const value = source[a * line + b * step];
          if (value === 0) continue;
          const first = Math.max(0, b - radius);
          const last = Math.min(NODES - 1, b + radius);
          for (let c = first; c <= last; c++) blurred[a * line + c * step] += value * kernel[c - b + radius];
        }
      }
      source = blurred;
    }
    return source;
  }

  /** Return the cell of a coordinate and the share of its upper edge. */
  function place(value) {
    const at = Math.min(Math.max((value + REACH) / CELL, 0), NODES - 1.001);
    const cell = Math.floor(at);
    return [cell, at - cell];
  }

  /** Return the guesses D on the grid at one time, (x, y) of each node, learned from the first `count` pairs. */
  function level(points, noise, count, t) {
    const sums = [new Float64Array(SIZE), new Float64Array(SIZE), new Float64Array(SIZE)];
    for (let i = 0; i < 2 * count; i += 2) {
      const [column, right] = place((1 - t) * points[i] + t * noise[i]);
      const [row, down] = place((1 - t) * points[i + 1] + t * noise[i + 1]);
      const values = [points[i], points[i + 1], 1];
      for (let c = 0; c < 4; c++) {
        const share = (c & 1 ? right : 1 - right) * (c & 2 ? down : 1 - down);
        const node = (row + (c >> 1)) * NODES + column + (c & 1);
        for (let s = 0; s < 3; s++) sums[s][node] += share * values[s];
      }
    }
    const [x, y, weight] = sums.map((sum) => {
      const near = blur(sum, NARROW);
      const far = blur(near, WIDE);
      return near.map((value, i) => value + 1e-5 * far[i]); // a far mean, only where no pair lies near
    });
    const guesses = new Float32Array(2 * SIZE);
    for (let i = 0; i < SIZE; i++) {
      guesses[2 * i] = x[i] / (weight[i] + 1e-12);
      guesses[2 * i + 1] = y[i] / (weight[i] + 1e-12);
    }
    return guesses;
  }

  /** Return the guesses at every time, one array a level. */
  function learn(points, noise, count) {
    return Array.from({ length: LEVELS }, (_, i) => level(points, noise, count, i / (LEVELS - 1)));
  }

  /** Return the guess of a learned field at a point and time, linear between nodes and levels. */
  function guess(field, x, y, t) {
    const [column, right] = place(x);
    const [row, down] = place(y);
    const at = Math.min(t * (LEVELS - 1), LEVELS - 1.001);
    const low = Math.floor(at);
    let dx = 0;
    let dy = 0;
    for (let c = 0; c < 8; c++) {
      const share = (c & 1 ? right : 1 - right) * (c & 2 ? down : 1 - down) * (c & 4 ? at - low : 1 - at + low);
      const node = 2 * ((row + ((c >> 1) & 1)) * NODES + column + (c & 1));
      const guesses = field[low + (c >> 2)];
      dx += share * guesses[node];
      dy += share * guesses[node + 1];
    }
    return [dx, dy];
  }

  /** Return the points of a path by Euler's method from each start, steps + 1 arrays from t = 1 to t = 0. */
  function sample(field, start, steps) {
    const path = [start];
    for (let step = 0; step < steps; step++) {
      const t = 1 - step / steps;
      const share = 1 / (steps - step); // dt / t
      const here = path[step];
      const next = new Float64Array(here.length);
      for (let i = 0; i < here.length; i += 2) {
        const [dx, dy] = guess(field, here[i], here[i + 1], t);
        next[i] = here[i] + share * (dx - here[i]);
        next[i + 1] = here[i + 1] + share * (dy - here[i + 1]);
      }
      path.push(next);
    }
    return path;
  }

  /** Return how many times longer paths are than the straight lines between their ends; 1 is straight. */
  function bend(path) {
    const last = path[path.length - 1];
    let along = 0;
    let across = 0;
    for (let i = 0; i < last.length; i += 2) {
      for (let s = 1; s < path.length; s++) {
        along += Math.hypot(path[s][i] - path[s - 1][i], path[s][i + 1] - path[s - 1][i + 1]);
      }
      across += Math.hypot(last[i] - path[0][i], last[i + 1] - path[0][i + 1]);
    }
    return along / across;
  }

  return { learn, guess, sample, bend, REACH };
}
