// Tabs in the background: hidden, with timers that browsers slow down, and servers all the same.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { LIMIT, Lab, freePort, sha256 } from "./lab.mjs";

/** How long the tabs stay in the background, in milliseconds, and requests in that time. */
const WATCH = 60_000;
const REQUESTS = 20;
/** Bytes of the transfer. */
const LONG = 64 * 1024 * 1024;

let lab;
before(async () => {
  lab = await Lab.open();
}, { timeout: LIMIT });
after(() => lab?.close());

/** Joins in a hidden tab, and serves a greeting, a long answer, and the checksum of what is posted. */
async function open(name, stack) {
  const page = await lab.hiddenTab();
  await page.evaluate(
    async ({ signal, name, stack, long }) => {
      const { join } = await import("/dist/index.js");
      globalThis.node = await join({ signal, name, stack });
      const hex = async (bytes) =>
        [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
      const words = Uint32Array.from({ length: long / 4 }, (_, at) => Math.imul(at, 2654435761));
      globalThis.sum = await hex(words);
      await node.serve({ port: 80 }, async (request) => {
        if (request.method === "POST") return new Response(await hex(await request.arrayBuffer()));
        return new Response(new URL(request.url).pathname === "/long" ? words : "awake");
      });
    },
    { signal: lab.signal, name, stack, long: LONG },
  );
  return page;
}

const seen = (page) => page.evaluate(async () => [document.visibilityState, (await node.status()).runs]);

async function watch(stack) {
  const page = await open(`behind-${stack}`, stack);
  assert.deepEqual(await seen(page), ["hidden", stack]);
  const port = await freePort();
  const forward = lab.run("forward", `127.0.0.1:${port}`, `behind-${stack}:80`, "--name", `seeker-${stack}`);
  await forward.line(/127\.0\.0\.1/);
  const url = `http://127.0.0.1:${port}`;
  const began = performance.now();
  const down = Buffer.from(await (await fetch(`${url}/long`)).arrayBuffer());
  assert.equal(sha256(down), await page.evaluate(() => sum));
  const up = await (await fetch(`${url}/`, { method: "POST", body: down })).text();
  assert.equal(up, sha256(down));
  console.log(`    128 MiB in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  for (let turn = 1; turn <= REQUESTS; turn += 1) {
    assert.equal(await (await fetch(url)).text(), "awake");
    await sleep(Math.max(began + (turn * WATCH) / REQUESTS - performance.now(), 0));
  }
  assert.deepEqual(await seen(page), ["hidden", stack]);
  await forward.kill();
}

test("hidden tabs serve for a minute", { concurrency: 2, timeout: WATCH + 2 * LIMIT }, async (t) => {
  const each = ["worker", "page"].map((stack) => t.test(`with the stack in the ${stack}`, () => watch(stack)));
  await Promise.all(each);
});
