// Measures a tab against raw data channels of the same browser, in turn; prints one JSON object. 'bench/run' calls it.

import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { once } from "node:events";
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { Lab } from "./lab.mjs";

const RAW = process.env.UNISOCKETS_RAW_CHANNEL;
const ROUNDS = Number(process.env.UNISOCKETS_ROUNDS ?? 5);
const BYTES = 64 * 1024 * 1024;
/** Message sizes of the raw channel; the best of them counts. */
const SIZES = [1_160, 16_384, 65_535];
const ECHOES = 500;
const MODULE = fileURLToPath(new URL("../core/core_bg.wasm", import.meta.url));

if (!RAW) throw new Error("UNISOCKETS_RAW_CHANNEL names the example 'raw_channel' of unisockets-link");

const median = (values) => values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)];

/** Opens a raw channel between a page and a process; the process's first line is its description. */
async function raw(lab, page, role, what, size, count) {
  const child = lab.spawn(RAW, [role, what, String(size), String(count), "0"]);
  const offer = role === "offer" ? await child.line(/^\{/) : undefined;
  const description = await page.evaluate(async (offer) => {
    globalThis.raw?.close();
    globalThis.raw = new RTCPeerConnection();
    globalThis.channel = raw.createDataChannel("raw", { negotiated: true, id: 0 });
    channel.binaryType = "arraybuffer";
    globalThis.messages = [];
    globalThis.heard = undefined;
    channel.onmessage = ({ data }) => (heard ? heard(data) : messages.push(data));
    if (offer) await raw.setRemoteDescription(JSON.parse(offer));
    await raw.setLocalDescription();
    while (raw.iceGatheringState !== "complete") await new Promise((resolve) => (raw.onicegatheringstatechange = resolve));
    return JSON.stringify(raw.localDescription);
  }, offer);
  child.process.stdin.write(`${description}\n`);
  if (!offer) {
    const answer = await child.line(/^\{/);
    await page.evaluate((answer) => raw.setRemoteDescription(JSON.parse(answer)), answer);
  }
  await page.evaluate(async () => channel.readyState === "open" || new Promise((resolve) => (channel.onopen = resolve)));
  return child;
}

async function rawFromTab(lab, page, size) {
  const child = await raw(lab, page, "answer", "bytes", size, BYTES);
  const rate = await page.evaluate(
    async ([size, bytes]) => {
      const message = new Uint8Array(size).fill(0x5a);
      channel.bufferedAmountLowThreshold = 256 * 1024;
      const done = new Promise((resolve) => (heard = resolve));
      const began = performance.now();
      for (let sent = 0; sent < bytes; sent += size) {
        if (channel.bufferedAmount > 1024 * 1024) await new Promise((resolve) => (channel.onbufferedamountlow = resolve));
        channel.send(message);
      }
      await done;
      return bytes / 1000 / (performance.now() - began);
    },
    [size, BYTES],
  );
  await child.kill();
  return rate;
}

async function rawToTab(lab, page, size) {
  const child = await raw(lab, page, "offer", "bytes", size, BYTES);
  await page.evaluate(
    async ([size, bytes]) => {
      let left = Math.ceil(bytes / size) * size - messages.reduce((sum, data) => sum + data.byteLength, 0);
      await new Promise((resolve) => {
        heard = (data) => (left -= data.byteLength) <= 0 && resolve();
        if (left <= 0) resolve();
      });
      channel.send("done");
    },
    [size, BYTES],
  );
  const line = await child.line(/^[\d.]+$/);
  await child.kill();
  return Number(line);
}

async function rawEcho(lab, page) {
  const child = await raw(lab, page, "answer", "echo", 64, ECHOES);
  const micros = await page.evaluate(async (count) => {
    const message = new Uint8Array(64);
    const times = [];
    for (let turn = 0; turn < count; turn += 1) {
      const answered = new Promise((resolve) => (heard = resolve));
      const began = performance.now();
      channel.send(message);
      // A first message may be lost on an end that has not opened.
      const again = turn === 0 ? setInterval(() => channel.send(new Uint8Array(1)), 100) : 0;
      await answered;
      clearInterval(again);
      times.push((performance.now() - began) * 1000);
    }
    return times;
  }, ECHOES);
  await child.kill();
  return median(micros);
}

/** One stream from the tab to a native program, until the last byte is acknowledged. */
async function fromTab(lab, page) {
  const nc = lab.spawn(process.env.UNISOCKETS_TOOL, ["nc", "-l", "9", "--name", "sink"], "pipe", "ignore");
  await nc.line(/listening/);
  const rate = await page.evaluate(async (bytes) => {
    const part = new Uint8Array(256 * 1024).fill(0x5a);
    const socket = await node.connect("sink", 9);
    const began = performance.now();
    for (let sent = 0; sent < bytes; sent += part.length) await socket.write(part);
    const waiting = async () => (await node.status()).sockets.some(({ remote, send_queue }) => remote?.endsWith(":9") && send_queue > 0);
    while (await waiting()) await new Promise((resolve) => setTimeout(resolve, 2));
    const rate = bytes / 1000 / (performance.now() - began);
    socket.close();
    return rate;
  }, BYTES);
  await nc.kill("SIGTERM");
  return rate;
}

async function toTab(lab, page, file) {
  const rate = page.evaluate(async (bytes) => {
    globalThis.source ??= await node.listen(9);
    const socket = await source.accept();
    let got = (await socket.read()).length;
    const began = performance.now();
    const first = got;
    for (let data; (data = await socket.read()); ) got += data.length;
    socket.close();
    if (got !== bytes) throw new Error(`${got} bytes of ${bytes}`);
    return (bytes - first) / 1000 / (performance.now() - began);
  }, BYTES);
  const stdin = openSync(file, "r");
  const nc = lab.spawn(process.env.UNISOCKETS_TOOL, ["nc", "--name", "source", "tab", "9"], stdin);
  const [value] = await Promise.all([rate, nc.ended]);
  closeSync(stdin);
  return value;
}

async function echo(page) {
  return median(
    await page.evaluate(async (count) => {
      const socket = await node.connect("echo", 7);
      await socket.setNoDelay();
      const message = new Uint8Array(64);
      const times = [];
      for (let turn = 0; turn < count; turn += 1) {
        const began = performance.now();
        await socket.write(message);
        for (let left = 64; left > 0; ) left -= (await socket.read()).length;
        times.push((performance.now() - began) * 1000);
      }
      socket.close();
      return times;
    }, ECHOES),
  );
}

/** From the beginning of loading the page to the first byte of a native peer, in seconds. */
async function firstByte(lab) {
  const context = await lab.browser.newContext();
  const page = await context.newPage();
  await page.goto("about:blank");
  const began = performance.now();
  await page.goto(lab.files);
  await page.evaluate(async (signal) => {
    const { join } = await import("/dist/index.js");
    const node = await join({ signal, key: "ephemeral" });
    await (await node.fetch("http://files/")).body.getReader().read();
  }, lab.signal);
  const took = (performance.now() - began) / 1000;
  await context.close();
  return took;
}

/** The longest task of the page's own thread while a stream runs, in milliseconds. */
async function longestTask(lab, page, file) {
  await page.evaluate(() => {
    globalThis.longest = 0;
    let last = performance.now();
    const { port1, port2 } = new MessageChannel();
    globalThis.ticking = true;
    // A thread that is free sees each of these at once; the time between two is what a task in between took.
    port1.onmessage = () => {
      const now = performance.now();
      longest = Math.max(longest, now - last);
      last = now;
      if (ticking) setTimeout(() => ((last = performance.now()), port2.postMessage(0)), 1);
    };
    port2.postMessage(0);
    globalThis.observed = 0;
    new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (observed = Math.max(observed, duration)))).observe({ type: "longtask" });
  });
  await toTab(lab, page, file);
  await fromTab(lab, page);
  return page.evaluate(() => ((ticking = false), Math.max(longest, observed)));
}

const folder = mkdtempSync(join(tmpdir(), "unisockets-bench-"));
const lab = await Lab.open();
try {
  const file = join(folder, "bytes");
  const made = openSync(file, "w");
  ftruncateSync(made, BYTES);
  closeSync(made);
  const served = lab.run("serve", "80", folder, "--name", "files");
  await served.line(/files/);
  const echoServer = createServer((socket) => socket.setNoDelay().pipe(socket).on("error", () => undefined)).listen(0, "127.0.0.1");
  await once(echoServer, "listening");
  const exposed = lab.run("expose", "7", `127.0.0.1:${echoServer.address().port}`, "--name", "echo");
  await exposed.line(/echo/);
  const page = await lab.tab("tab");
  const plain = await lab.browser.newPage();
  await plain.goto(lab.files);
  // Links are made before anything is measured.
  await echo(page);
  await fromTab(lab, page);
  await toTab(lab, page, file);
  const rounds = { from: [], to: [], fromRaw: [], toRaw: [], extra: [], echo: [], rawEcho: [], first: [] };
  for (let round = 0; round < ROUNDS; round += 1) {
    const best = async (measure) => {
      let rate = 0;
      for (const size of SIZES) rate = Math.max(rate, await measure(lab, plain, size));
      return rate;
    };
    rounds.from.push(await fromTab(lab, page));
    rounds.fromRaw.push(await best(rawFromTab));
    rounds.to.push(await toTab(lab, page, file));
    rounds.toRaw.push(await best(rawToTab));
    rounds.echo.push(await echo(page));
    rounds.rawEcho.push(await rawEcho(lab, plain));
    rounds.first.push(await firstByte(lab));
  }
  const ratio = (ours, theirs) => median(ours.map((value, at) => value / theirs[at]));
  const result = {
    tab_to_native_vs_raw: ratio(rounds.from, rounds.fromRaw),
    native_to_tab_vs_raw: ratio(rounds.to, rounds.toRaw),
    tab_echo_extra_us: median(rounds.echo.map((value, at) => value - rounds.rawEcho[at])),
    wasm_gzip_kib: gzipSync(readFileSync(MODULE), { level: 9 }).length / 1024,
    tab_join_first_byte_s: median(rounds.first),
    tab_main_thread_block_ms: await longestTask(lab, page, file),
    rounds,
  };
  console.log(JSON.stringify(result));
  echoServer.close();
} finally {
  await lab.close();
  rmSync(folder, { recursive: true, force: true });
}
process.exit(0);
