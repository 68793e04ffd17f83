// A tab and a native program that see each other through a TURN server only: everything works, and both say so.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createSocket } from "node:dgram";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { LIMIT, Lab } from "./lab.mjs";

const USER = "member";
const PASSWORD = "of:the@network";

/** Coturn in a folder of its own. */
class TurnServer {
  #place = mkdtempSync(join(tmpdir(), "unisockets-turn-"));

  async start() {
    const port = createSocket("udp4").bind(0, "127.0.0.1");
    await once(port, "listening");
    this.port = port.address().port;
    await new Promise((resolve) => port.close(resolve));
    const settings = [
      "listening-ip=127.0.0.1", `listening-port=${this.port}`, "relay-ip=127.0.0.1", "allow-loopback-peers", "no-tls", "no-dtls",
      "no-tcp", "no-tcp-relay", "no-cli", "lt-cred-mech", "realm=unisockets.test", `user=${USER}:${PASSWORD}`, "log-file=stdout",
      `pidfile=${join(this.#place, "pid")}`, `userdb=${join(this.#place, "users")}`,
    ];
    writeFileSync(join(this.#place, "turnserver.conf"), settings.join("\n"));
    this.process = spawn("turnserver", ["-c", join(this.#place, "turnserver.conf")], { cwd: this.#place, stdio: "ignore" });
    this.ended = once(this.process, "close").catch(() => undefined);
    await once(this.process, "spawn");
    await this.#answers();
  }

  /** Waits for the answer to a binding request (RFC 8489, section 5). */
  async #answers() {
    const socket = createSocket("udp4");
    const answered = once(socket, "message");
    const request = Buffer.concat([Buffer.from([0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42]), Buffer.alloc(12)]);
    const asking = setInterval(() => socket.send(request, this.port, "127.0.0.1"), 50);
    await answered.finally(() => clearInterval(asking));
    socket.close();
  }

  async stop() {
    this.process?.kill("SIGKILL");
    await this.ended;
    rmSync(this.#place, { recursive: true, force: true });
  }
}

const turn = new TurnServer();
let lab;
before(async () => {
  await turn.start();
  lab = await Lab.open();
}, { timeout: LIMIT });
after(async () => {
  await lab?.close();
  await turn.stop();
});

test("a tab and a native program over a relay only", { timeout: 2 * LIMIT }, async () => {
  const page = await lab.tab("shop", {
    options: { iceServers: [{ url: `turn:127.0.0.1:${turn.port}?transport=udp`, username: USER, credential: PASSWORD }] },
  });
  await page.evaluate(() =>
    node.serve({ port: 80 }, async (request) => new Response(`${(await request.arrayBuffer()).byteLength} bytes have come`)),
  );
  const option = `turn:${USER}:${PASSWORD}@127.0.0.1:${turn.port}?transport=udp`;
  const nc = lab.run("nc", "--name", "asker", "--relay-only", "--ice-server", option, "shop", "80");
  const len = 4 * 1024 * 1024;
  nc.process.stdin.write(`POST / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\nContent-Length: ${len}\r\n\r\n`);
  nc.process.stdin.on("error", () => undefined);
  nc.process.stdin.end(Buffer.alloc(len));
  const path = await page.evaluate(async () => {
    for (;;) {
      const peer = (await node.status()).peers.find(({ path }) => path !== null);
      if (peer) return peer.path;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  });
  assert.equal(path, "relayed");
  assert.match((await nc.output()).toString(), new RegExp(`${len} bytes have come`));
});
