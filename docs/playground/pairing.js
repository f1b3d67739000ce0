"use strict";

/**
 * Return the functions that make points and pair them with noise. Points are Float64Array (x0, y0, x1, y1, ...).
 *
 * One function without outer names: the page hands its text to a worker, which a page opened from a file may not load.
 */
function makePairing() {
  /** Return a source of uniform numbers in (0, 1) (mulberry32). */
  function uniforms(seed) {
    let state = seed >>> 0;
    return () => {
      state = (state + 0x6d2b79f5) >>> 0;
      let z = Math.imul(state ^ (state >>> 15), state | 1);
      z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
      return (((z ^ (z >>> 14)) >>> 0) + 0.5) / 4294967296;
    };
  }

  /** Return n standard normal points. */
  function normals(n, uniform) {
    const points = new Float64Array(2 * n);
    for (let i = 0; i < 2 * n; i += 2) {
      const radius = Math.sqrt(-2 * Math.log(uniform()));
      const angle = 2 * Math.PI * uniform();
      points[i] = radius * Math.cos(angle);
      points[i + 1] = radius * Math.sin(angle);
    }
    return points;
  }

  /** One point of each data set: before shifting and scaling to mean 0 and a mean square of 1 a coordinate. */
  const shapes = {
    moons(uniform) {
      const angle = Math.PI * uniform();
      const upper = uniform() < 0.5;
      return upper ? [Math.cos(angle), Math.sin(angle)] : [1 - Math.cos(angle), 0.5 - Math.sin(angle)];
    },
    clusters(uniform) {
      const angle = (Math.floor(8 * uniform()) * Math.PI) / 4;
      const [dx, dy] = normals(1, uniform);
      return [Math.cos(angle) + 0.07 * dx, Math.sin(angle) + 0.07 * dy];
    },
    spiral(uniform) {
      const turn = 1.2 + 3 * Math.sqrt(uniform());
      return [turn * Math.cos(1.7 * turn), turn * Math.sin(1.7 * turn)];
    },
    board(uniform) {
      const column = Math.floor(4 * uniform());
      const row = 2 * Math.floor(2 * uniform()) + (column % 2);
      return [column + uniform(), row + uniform()];
    },
  };

  const scales = {};

  /** Return n points of a data set. */
  function data(name, n, uniform) {
    if (!scales[name]) {
      const fixed = uniforms(1);
      const many = Array.from({ length: 20000 }, () => shapes[name](fixed));
      const centre = [0, 1].map((axis) => many.reduce((sum, point) => sum + point[axis], 0) / many.length);
      const square = many.reduce((sum, [x, y]) => sum + (x - centre[0]) ** 2 + (y - centre[1]) ** 2, 0);
      scales[name] = { centre, scale: Math.sqrt(square / many.length / 2) };
    }
    const { centre, scale } = scales[name];
    const points = new Float64Array(2 * n);
    for (let i = 0; i < n; i++) {
      const [x, y] = shapes[name](uniform);
      points[2 * i] = (x - centre[0]) / scale;
      points[2 * i + 1] = (y - centre[1]) / scale;
    }
    return points;
  }

  /** Return the squared distances of n points to m others, row by row. */
  function squares(points, others) {
    const n = points.length / 2;
    const m = others.length / 2;
    const cost = new Float64Array(n * m);
    for (let i = 0, at = 0; i < n; i++) {
      for (let j = 0; j < m; j++, at++) {
        cost[at] = (points[2 * i] - others[2 * j]) ** 2 + (points[2 * i + 1] - others[2 * j + 1]) ** 2;
      }
    }
    return cost;
  }

  /**
   * Return the column of each row in the assignment of least total cost, n x n.
   *
   * Jonker and Volgenant's shortest augmenting paths after a reduction of the columns: exact, at most n^3 operations.
   */
  function assign(cost, n) {
    const price = new Float64Array(n);
    const rowOf = new Int32Array(n).fill(-1);
    const columnOf = new Int32Array(n).fill(-1);
    for (let j = n - 1; j >= 0; j--) {
      let best = 0;
      for (let i = 1; i < n; i++) if (cost[i * n + j] < cost[best * n + j]) best = i;
      price[j] = cost[best * n + j];
      if (columnOf[best] < 0) {
        columnOf[best] = j;
        rowOf[j] = best;
      }
    }
    const length = new Float64Array(n);
    const from = new Int32Array(n);
    const order = Int32Array.from({ length: n }, (_, j) => j); // the first `count` columns are settled
    for (let free = 0; free < n; free++) {
      if (columnOf[free] >= 0) continue;
      for (let j = 0; j < n; j++) {
        length[j] = cost[free * n + j] - price[j];
        from[j] = free;
      }
      let at = 0;
      for (let j = 1; j < n; j++) if (length[order[j]] < length[order[at]]) at = j;
      let count = 0;
      for (;;) {
        [order[count], order[at]] = [order[at], order[count]];
        const end = order[count];
        const row = rowOf[end];
        if (row < 0) break;
        count++;
        const base = length[end] - (cost[row * n + end] - price[end]);
        let shortest = Infinity;
        for (let s = count; s < n; s++) {
          const j = order[s];
          const through = base + cost[row * n + j] - price[j];
          if (through < length[j]) {
            length[j] = through;
            from[j] = row;
          }
          if (length[j] < shortest) {
            shortest = length[j];
            at = s;
          }
        }
      }
      let end = order[count];
      for (let s = 0; s < count; s++) price[order[s]] += length[order[s]] - length[end];
      for (let row = -1; row !== free; ) {
        row = from[end];
        rowOf[end] = row;
        [columnOf[row], end] = [end, columnOf[row]];
      }
    }
    return columnOf;
  }

  /** Return a noise for each point of a batch by the named coupling. */
  function pair(name, points, k, uniform) {
    const n = points.length / 2;
    if (name === "nearest") {
      const kept = new Float64Array(2 * n);
      for (let i = 0; i < n; i++) {
        const candidates = normals(k, uniform);
        const far = squares(points.subarray(2 * i, 2 * i + 2), candidates);
        const best = far.indexOf(Math.min(...far));
        kept.set(candidates.subarray(2 * best, 2 * best + 2), 2 * i);
      }
      return kept;
    }
    const noise = normals(n, uniform);
    if (name === "independent") return noise;
    const paired = new Float64Array(2 * n);
    assign(squares(points, noise), n).forEach((column, row) => {
      paired.set(noise.subarray(2 * column, 2 * column + 2), 2 * row);
    });
    return paired;
  }

  /** Return the mean distance of points to the others in the same places. */
  function meanDistance(points, others) {
    let sum = 0;
    for (let i = 0; i < points.length; i += 2) sum += Math.hypot(points[i] - others[i], points[i + 1] - others[i + 1]);
    return (2 * sum) / points.length;
  }

  /** Return the mean distance between two sets of as many points, paired by the exact assignment of distances. */
  function transport(points, others) {
    const n = points.length / 2;
    const cost = squares(points, others).map(Math.sqrt);
    return assign(cost, n).reduce((sum, column, row) => sum + cost[row * n + column], 0) / n;
  }

  return { uniforms, normals, data, squares, assign, pair, meanDistance, transport, names: Object.keys(shapes) };
}
