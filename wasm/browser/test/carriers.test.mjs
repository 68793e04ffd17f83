// The memory in which bytes travel between a page and its worker, without either.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Carriers } from "../dist/carriers.js";

const PART = 100_000;

/** Hands bytes over as a message does: whoever had them has them no more. */
const post = (value, transfer) => structuredClone(value, { transfer });

test("memory that has come back is used again, and there is no more of it than four pieces", () => {
  const [page, worker] = [new Carriers(), new Carriers()];
  const carriers = new Set();
  for (let turn = 0; turn < 20; turn += 1) {
    const sent = page.load(new Uint8Array(PART).fill(turn));
    const came = post(sent, [sent.buffer]);
    assert.ok(came.every((byte) => byte === turn));
    carriers.add(came.buffer.byteLength);
    worker.spend(came);
    const spent = worker.takeSpent();
    page.give(post(spent, spent));
  }
  assert.equal(carriers.size, 1, "all in the same kind of memory");
  // Nobody gives these back.
  const held = Array.from({ length: 6 }, () => page.load(new Uint8Array(PART)).buffer.byteLength);
  assert.deepEqual(held.map((length) => length > PART), [true, true, true, true, false, false]);
});

test("what was read is in memory of its own, however it came", () => {
  const [page, worker] = [new Carriers(), new Carriers()];
  const read = (length, number) => {
    const filled = worker.fill(1_000_000, (into) => (into.fill(number), length));
    return filled && page.unload(post(filled, [filled.buffer]));
  };
  const parts = [1, 8_191, 8_192, PART, 262_144, 262_144, PART].map((length, number) => read(length, number));
  assert.deepEqual(parts.map(({ length }) => length), [1, 8_191, 8_192, PART, 262_144, 262_144, PART]);
  assert.ok(parts.every((part, number) => part.buffer.byteLength === part.length && part.every((byte) => byte === number)));
  assert.equal(read(-1, 0), undefined);
  assert.equal(read(0, 0).length, 0);
  assert.throws(() => worker.fill(10, () => { throw new Error("reset"); }), /reset/);
  const spent = page.takeSpent();
  assert.equal(spent.length, 4, "a fifth found no memory free, and came in its own");
  worker.give(post(spent, spent));
  assert.equal(read(PART, 7).buffer.byteLength, PART);
});

test("a page that has its stack on its own thread keeps one piece", () => {
  const calls = new Carriers(Infinity);
  const parts = [1, 2, 3].map((number) => calls.fill(PART, (into) => (into.fill(number), into.length)));
  assert.deepEqual(parts.map((part) => [part[0], part.buffer.byteLength]), [[1, PART], [2, PART], [3, PART]]);
  assert.deepEqual(calls.takeSpent(), []);
});
