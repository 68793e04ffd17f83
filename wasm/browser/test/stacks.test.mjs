// Members on independent WebRTC stacks: libwebrtc in Chromium and in Node.js, libdatachannel, werift, and the native
// tool's. Every two of them that can meet do.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { LIMIT, Lab, freePort, sha256 } from "./lab.mjs";

const PEER = fileURLToPath(new URL("peer.mjs", import.meta.url));
const PACKAGES = ["node-datachannel", "wrtc", "werift"];
const data = Buffer.from(Uint8Array.from({ length: 1024 * 1024 }, (_, at) => Math.imul(at, 2246822519) >>> 24));

let lab;
let folder;
before(async () => {
  lab = await Lab.open();
  folder = mkdtempSync(join(tmpdir(), "unisockets-stacks-"));
  writeFileSync(join(folder, sha256(data)), data);
}, { timeout: LIMIT });
after(async () => {
  await lab?.close();
  if (folder) rmSync(folder, { recursive: true, force: true });
});

/** Starts a member on the WebRTC of a package. */
async function start(kind, name, ...more) {
  const child = lab.spawn(process.execPath, [PEER, kind, lab.signal, name, ...more]);
  await child.line(/^ready$/);
  return child;
}

/** Has a member ask for a URL. */
async function ask(child, url) {
  child.process.stdin.write(`${url}\n`);
  const answer = await child.line(new RegExp(`^${url.replaceAll(".", "\\.")} `));
  return answer.slice(url.length + 1);
}

test("members on every stack reach those on every other one", { timeout: 3 * LIMIT }, async (t) => {
  const native = lab.run("serve", "--name", "native", "80", folder);
  await native.line(/native/);
  const page = await lab.tab("chromium");
  await page.evaluate(async () => {
    const hex = async (bytes) =>
      [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    await node.serve({ port: 80 }, async (request) => new Response(await hex(await request.arrayBuffer())));
  });
  const peers = new Map();
  for (const kind of PACKAGES) peers.set(kind, await start(kind, kind));

  for (const [kind, child] of peers) {
    await t.test(`${kind} and native`, { timeout: LIMIT }, async () => {
      assert.equal(await ask(child, `http://native/${sha256(data)}`), "right");
      const port = await freePort();
      const forward = lab.run("forward", `127.0.0.1:${port}`, `${kind}:80`, "--name", `to-${kind}`);
      await forward.line(/127\.0\.0\.1/);
      const answer = await fetch(`http://127.0.0.1:${port}/`, { method: "POST", body: data });
      assert.equal(await answer.text(), sha256(data));
      await forward.kill();
    });
  }
  const others = [...PACKAGES, "chromium"];
  for (const [kind, child] of peers) {
    for (const other of others.slice(others.indexOf(kind) + 1)) {
      await t.test(`${kind} and ${other}`, { timeout: LIMIT }, async () => {
        assert.equal(await ask(child, `http://${other}/`), "right");
      });
    }
  }
  for (const child of peers.values()) await child.kill();
  await page.context().close();
  await native.kill();
});

test("a member whose fingerprint was altered is refused", { timeout: 2 * LIMIT }, async () => {
  const native = lab.run("serve", "--name", "careful", "80", folder);
  await native.line(/careful/);
  const honest = await start("node-datachannel", "honest", "unaltered");
  assert.equal(await ask(honest, `http://careful/${sha256(data)}`), "right");
  await honest.kill();
  const liar = await start("node-datachannel", "liar", "altered");
  assert.match(await ask(liar, `http://careful/${sha256(data)}`), /^failed: (EHOSTUNREACH|ETIMEDOUT) /);
  await liar.kill();
  await native.kill();
});
