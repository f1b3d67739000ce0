"use strict";

/**
 * Return the work of the page as a function of a request; it answers by `post` and goes on by `later`.
 *
 * A request is {id, data, coupling, batch, k, steps, seed}. The asked coupling comes first, then the two others for the
 * table. Pairs are made in slices of 25 ms, so that a newer request is not kept waiting.
 */
function makeWork(pairing, field, post, later) {
  const PAIRS = 16384; // a field is learned from so many pairs
  const SAMPLES = 256;
  const FINE = 100;
  const COUPLINGS = ["independent", "assignment", "nearest"];
  const pools = new Map();
  let newest = 0;

  /** Return the pool of pairs of a coupling under a request, made once. */
  function pool(request, coupling) {
    const batch = coupling === "assignment" ? request.batch : 64; // others pair row by row
    const k = coupling === "nearest" ? request.k : 0;
    const key = [request.data, coupling, coupling === "assignment" ? batch : 0, k, request.seed].join();
    if (!pools.has(key)) {
      if (pools.size > 24) pools.delete(pools.keys().next().value);
      const uniform = pairing.uniforms(977 * request.seed + 5);
      const [points, noise] = [new Float64Array(2 * PAIRS), new Float64Array(2 * PAIRS)];
      pools.set(key, { coupling, batch, k, uniform, points, noise, count: 0, learned: 0, field: null });
    }
    return pools.get(key);
  }

  /** Add one batch of pairs to a pool. */
  function grow(pairs, request) {
    const size = Math.min(pairs.batch, PAIRS - pairs.count);
    const points = pairing.data(request.data, size, pairs.uniform);
    pairs.points.set(points, 2 * pairs.count);
    pairs.noise.set(pairing.pair(pairs.coupling, points, pairs.k, pairs.uniform), 2 * pairs.count);
    pairs.count += size;
  }

  /** Learn the field of a pool from the pairs that it has so far. */
  function learn(pairs) {
    if (pairs.learned === pairs.count) return;
    pairs.field = field.learn(pairs.points, pairs.noise, pairs.count);
    pairs.learned = pairs.count;
  }

  /** Return the numbers of a learned coupling. */
  function numbers(pairs, request) {
    const uniform = pairing.uniforms(31 * request.seed + 2);
    const start = pairing.normals(SAMPLES, uniform);
    const truth = pairing.data(request.data, SAMPLES, uniform);
    const again = pairing.data(request.data, SAMPLES, uniform);
    const fine = field.sample(pairs.field, start, FINE);
    const end = field.sample(pairs.field, start, request.steps)[request.steps];
    const origin = new Float64Array(2 * pairs.count);
    const [points, noise] = [pairs.points.subarray(0, 2 * pairs.count), pairs.noise.subarray(0, 2 * pairs.count)];
    return {
      distance: pairing.meanDistance(points, noise),
      length: pairing.meanDistance(noise, origin),
      bend: field.bend(fine),
      error: pairing.meanDistance(end, fine[FINE]),
      transport: pairing.transport(end, truth),
      floor: pairing.transport(again, truth),
      pairs: pairs.count,
    };
  }

  /** Post one batch, as the picture of pairs shows it. */
  function postBatch(request) {
    const uniform = pairing.uniforms(7919 * request.seed + 1);
    const points = pairing.data(request.data, request.batch, uniform);
    const noise = pairing.pair(request.coupling, points, request.k, uniform);
    const distance = pairing.meanDistance(points, noise);
    post({ kind: "batch", id: request.id, points, noise, distance });
  }

  /** Work on a request for a slice of time; the couplings that are still to do are `rest`. */
  function slice(request, rest, posted) {
    if (request.id !== newest) return;
    const pairs = pool(request, rest[0]);
    const until = Date.now() + 25;
    while (pairs.count < PAIRS && Date.now() < until) grow(pairs, request);
    const full = pairs.count === PAIRS;
    const asked = rest[0] === request.coupling;
    if (full || (asked && Date.now() - posted > 400)) {
      learn(pairs);
      if (asked) post({ kind: "field", id: request.id, field: pairs.field, pairs: pairs.count });
      posted = Date.now();
    }
    if (full) {
      post({ kind: "numbers", id: request.id, coupling: rest[0], numbers: numbers(pairs, request) });
      rest = rest.slice(1);
    }
    if (rest.length) later(() => slice(request, rest, posted));
    else post({ kind: "done", id: request.id });
  }

  return (request) => {
    newest = request.id;
    postBatch(request);
    slice(request, [request.coupling, ...COUPLINGS.filter((name) => name !== request.coupling)], 0);
  };
}
