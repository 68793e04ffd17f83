// HTTP between tabs, and what a strict reader would send.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { LIMIT, Lab, equip } from "./lab.mjs";

let lab;
before(async () => {
  lab = await Lab.open();
}, { timeout: LIMIT });
after(() => lab?.close());

async function tab(name, options) {
  const page = await lab.tab(name, options);
  await equip(page);
  return page;
}

test("http: answers arrive whatever becomes of the request, and the next request is one", { timeout: LIMIT }, async () => {
  const page = await tab("web");
  const client = await tab("surfer");
  await page.evaluate(async () => {
    const echo = await node.listen(7);
    void echo.accept().then((socket) => socket.readable.pipeTo(socket.writable).finally(() => socket.close()));
    globalThis.cancelled = new Promise((resolve) => (globalThis.cancel = resolve));
    await node.serve({ port: 80 }, async (request) => {
      const { pathname } = new URL(request.url);
      if (pathname === "/echo") return new Response(request.body);
      if (pathname === "/refuse") return new Response("x".repeat(100_000), { status: 413 });
      if (pathname === "/leave") return await request.body.cancel(), new Response("left");
      if (pathname === "/moved") return new Response(null, { status: 307, headers: { location: "/type" } });
      if (pathname === "/type") return new Response(request.headers.get("content-type"));
      if (pathname === "/null") return null;
      if (pathname === "/text") return "text";
      if (pathname === "/short") return new Response("abc", { headers: { "content-length": "7" } });
      if (pathname === "/long") return new Response("abcdefghij", { headers: { "content-length": "7" } });
      if (pathname === "/reset") return new Response(null, { status: 205 });
      if (pathname === "//elsewhere/x") return new Response(new URL(request.url).host);
      if (pathname === "/away") return new Response(null, { status: 302, headers: { location: "http://surfer/seen" } });
      if (pathname === "/endless") return new Response(new ReadableStream({ pull: (c) => c.enqueue(new Uint8Array(65536)), cancel: () => cancel("cancelled") }));
      if (pathname === "/idle") return new Response(new ReadableStream({ pull: () => new Promise(() => undefined) }));
      return new Response("plain");
    });
  });
  const found = await client.evaluate(async () => {
    const seen = new Promise((resolve) => {
      void node.serve({ port: 80 }, (_, { headers }) => (resolve([headers.get("authorization"), headers.get("x-kept")]), new Response("seen")));
    });
    const body = pattern(6 * 1024 * 1024);
    const back = await (await node.fetch("http://web/echo", { method: "POST", body })).arrayBuffer();
    const refused = await node.fetch("http://web/refuse", { method: "POST", body });
    const refusal = (await refused.text()).length;
    const type = await (await node.fetch("http://web/type", { method: "POST", body: new URLSearchParams({ a: "b" }) })).text();
    const repeated = await node.fetch("http://web/moved", { method: "POST", body: new URLSearchParams({ a: "b" }) });
    const moved = await repeated.text();
    if (!repeated.redirected || refused.redirected) throw new Error("who was redirected is not told");
    if (moved !== type) throw new Error(`the repetition says ${moved}`);
    await node.fetch("http://web/away", { headers: { authorization: "secret", "x-kept": "1" } });
    // A request whose content the handler ends, with another one in that content.
    const inner = "GET /inner HTTP/1.1\r\nHost: web\r\n\r\n";
    const smuggler = await node.connect("web", 80);
    await smuggler.write(`POST /leave HTTP/1.1\r\nHost: web\r\nContent-Length: ${inner.length}\r\n\r\n`);
    await smuggler.write(inner);
    await smuggler.shutdown();
    const answers = new TextDecoder().decode(await readAll(smuggler)).match(/HTTP\/1\.1 \d+/g);
    const raw = async (text) => {
      const socket = await node.connect("web", 80);
      await socket.write(text);
      return new TextDecoder().decode(await readAll(socket).catch(({ code }) => new TextEncoder().encode(code)));
    };
    const status = async (text) => (await raw(text)).match(/^HTTP\/1\.1 (\d+)|^E[A-Z]+/)?.[0];
    const end = "Host: web\r\nConnection: close\r\n\r\n";
    const strict = [
      await status("GET / HTTP/1.1\r\n\r\n"),
      await status("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
      await status("GET https://web/ HTTP/1.1\r\nHost: web\r\n\r\n"),
      await status("CONNECT web:80 HTTP/1.1\r\nHost: web\r\n\r\n"),
      (await raw(`POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n${end}\r\n\r\n`)).includes("\r\n0\r\n\r\n"),
      (await raw(`GET //elsewhere/x HTTP/1.1\r\n${end}`)).includes("\r\nweb\r\n"),
      /content-length: 0\r\n/.test(await raw(`GET /reset HTTP/1.1\r\n${end}`)),
    ];
    const wrong = [(await node.fetch("http://web/null")).status, (await node.fetch("http://web/text")).status];
    const lengths = [];
    for (const path of ["short", "long"]) {
      const answer = await node.fetch(`http://web/${path}`);
      lengths.push(await answer.text().catch(() => "broken"));
    }
    const two = await node.connect("web", 80);
    await two.write("GET /a HTTP/1.1\r\nHost: web\r\n\r\nGET /b HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n");
    const pipelined = new TextDecoder().decode(await readAll(two)).match(/HTTP\/1\.1 \d+/g);
    // Writes that nobody waits for come one after the other, and the end after them.
    const echo = await node.connect("web", 7);
    const parts = [pattern(700_000), pattern(400_000), pattern(900_000)];
    parts.forEach((part) => void echo.write(part));
    void echo.shutdown();
    const ordered = (await hex(await readAll(echo))) === (await hex(await new Blob(parts).arrayBuffer()));
    const stop = new AbortController();
    const stopped = await node.fetch("http://web/endless", { signal: stop.signal });
    // What a stream says; 'text()' of Chromium says of every error that it is one.
    const reading = stopped.body.pipeTo(new WritableStream()).catch((error) => error.message);
    stop.abort(new Error("that is enough"));
    const reason = await reading;
    const endless = await node.fetch("http://web/endless");
    await endless.body.cancel();
    // Nothing comes, and nobody wants it any more: that settles.
    const idle = (await node.fetch("http://web/idle")).body.getReader();
    const pending = idle.read();
    await idle.cancel();
    const ended = (await pending).done;
    return {
      same: (await hex(back)) === (await hex(body)),
      refused: [refused.status, refusal],
      type,
      seen: await seen,
      answers,
      pipelined,
      ordered,
      strict,
      wrong,
      lengths,
      reason,
      ended,
    };
  });
  assert.deepEqual(found, {
    same: true,
    refused: [413, 100_000],
    type: "application/x-www-form-urlencoded;charset=UTF-8",
    seen: [null, "1"],
    answers: ["HTTP/1.1 200"],
    pipelined: ["HTTP/1.1 200", "HTTP/1.1 200"],
    ordered: true,
    strict: ["HTTP/1.1 400", "HTTP/1.1 400", "HTTP/1.1 400", "HTTP/1.1 400", false, true, true],
    wrong: [500, 500],
    lengths: ["broken", "broken"],
    reason: "that is enough",
    ended: true,
  });
  // Bodies that nobody reads, and nobody can read any more, let their connections go.
  const open = () => client.evaluate(async () => (await node.status()).sockets.filter(({ remote }) => remote?.endsWith(":80")).length);
  const before = await open();
  await client.evaluate(async () => {
    for (let turn = 0; turn < 5; turn += 1) await node.fetch("http://web/endless");
  });
  const collector = await client.context().newCDPSession(client);
  while ((await open()) > before) {
    await collector.send("HeapProfiler.collectGarbage");
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  assert.equal(await page.evaluate(() => cancelled), "cancelled");
  // Who holds many connections is refused more, and others are not.
  const greedy = await client.evaluate(async () => {
    const held = await Promise.all(Array.from({ length: 300 }, () => node.connect("web", 80)));
    let refused = 0;
    for (const socket of held) void socket.read().catch(({ code }) => (refused += Number(code === "ECONNRESET")));
    for (let turn = 0; refused < 90 && turn < 200; turn += 1) await new Promise((resolve) => setTimeout(resolve, 50));
    globalThis.held = held;
    return refused;
  });
  // Some of what came before may still be open.
  assert.ok(greedy >= 90 && greedy < 150, String(greedy));
  const other = await tab("modest");
  assert.equal(await other.evaluate(async () => (await node.fetch("http://web/plain")).text()), "plain");
  await client.evaluate(() => held.forEach((socket) => socket.reset()));
  await other.context().close();
  for (const each of [page, client]) await each.context().close();
});

/** A handler that waits, and content that does not come, kept their connections for ever when the client had gone. */
test("http: a client that goes ends what is being done for it", { timeout: LIMIT }, async () => {
  const page = await tab("waiting-room");
  await page.evaluate(async () => {
    globalThis.ended = [];
    await node.serve({ port: 80 }, async (request) => {
      const { pathname } = new URL(request.url);
      request.signal.addEventListener("abort", () => ended.push(`${pathname} ${request.signal.reason.code}`));
      if (pathname === "/wait") await new Promise(() => undefined);
      return new Response(new ReadableStream({ pull: () => new Promise(() => undefined), cancel: () => void ended.push("cancelled") }));
    });
  });
  const client = await tab("hasty");
  await client.evaluate(async () => {
    for (const path of ["/wait", "/stream"]) {
      const socket = await node.connect("waiting-room", 80);
      await socket.write(`GET ${path} HTTP/1.1\r\nHost: waiting-room\r\n\r\n`);
      if (path === "/stream") await socket.read();
      else await new Promise((resolve) => setTimeout(resolve, 300));
      socket.reset();
    }
  });
  await page.waitForFunction(() => ended.length === 3);
  assert.deepEqual((await page.evaluate(() => ended)).sort(), ["/stream ECONNRESET", "/wait ECONNRESET", "cancelled"]);
  await page.waitForFunction(async () => (await node.status()).sockets.every(({ remote }) => !remote));
  for (const each of [page, client]) await each.context().close();
});

/** Pieces of a request went to the handler and to nobody in turn once its answer was sent, and it was told of no gap. */
test("http: a handler that answers first gets the rest of the request, or an error", { timeout: LIMIT }, async () => {
  const page = await tab("early");
  const client = await tab("uploader");
  await page.evaluate(async () => {
    globalThis.kept = [];
    await node.serve({ port: 80 }, (request) => {
      const late = request.url.endsWith("/late");
      const begin = late ? new Promise((resolve) => setTimeout(resolve, 1_000)) : Promise.resolve();
      const reading = begin.then(() => request.arrayBuffer());
      kept.push(reading.then((data) => hex(data), (error) => error.code ?? error.name));
      return new Response(null, { status: 202 });
    });
  });
  const sent = await client.evaluate(async () => {
    const body = pattern(3 * 1024 * 1024);
    for (const [path, more] of [["now", ""], ["now", "Connection: close\r\n"], ["late", ""]]) {
      const socket = await node.connect("early", 80);
      await socket.write(`POST /${path} HTTP/1.1\r\nHost: early\r\nContent-Length: ${body.length}\r\n${more}\r\n`);
      await socket.write(body.subarray(0, 1_000_000));
      const answer = new TextDecoder().decode(await socket.read());
      if (!answer.startsWith("HTTP/1.1 202")) throw new Error(answer);
      await socket.write(body.subarray(1_000_000));
      await socket.shutdown();
      await readAll(socket);
    }
    return hex(body);
  });
  const kept = await page.evaluate(() => Promise.all(kept));
  assert.deepEqual(kept.slice(0, 2), [sent, sent]);
  assert.notEqual(kept[2], sent);
  assert.match(kept[2], /^[A-Z][A-Za-z]+$/, "an error, and no content with a gap");
  for (const each of [page, client]) await each.context().close();
});

/** Lengths were of characters and of elements, and what was sent was longer. */
test("http: pieces of an answer that are no bytes end it, and its author is told", { timeout: LIMIT }, async () => {
  const page = await tab("inexact");
  const client = await tab("reader-of-pieces");
  const told = [];
  page.on("console", (message) => message.type() === "error" && told.push(message.text()));
  await page.evaluate(() =>
    node.serve({ port: 80 }, (request) => {
      const piece = { "/text": "h\u00e9llo", "/words": new Uint16Array(3), "/buffer": new ArrayBuffer(3) }[new URL(request.url).pathname];
      return new Response(new ReadableStream({ start: (stream) => (stream.enqueue(piece), stream.close()) }), { headers: { "content-length": "3" } });
    }),
  );
  const found = await client.evaluate(async () => {
    const seen = [];
    for (const path of ["text", "words", "buffer"]) {
      seen.push(await node.fetch(`http://inexact/${path}`).then((answer) => answer.text()).then(() => "whole", () => "broken"));
    }
    return seen;
  });
  assert.deepEqual(found, ["broken", "broken", "broken"]);
  assert.equal(told.filter((text) => text.includes("no Uint8Array")).length, 3, String(told));
  for (const each of [page, client]) await each.context().close();
});

test("http: answers that break its rules are errors with a code and a sentence", { timeout: LIMIT }, async () => {
  const page = await tab("liar");
  const client = await tab("careful");
  const head = (first, fields = "") => `HTTP/1.1 ${first}\r\n${fields}\r\n`;
  const answers = [
    "\0nonsense\r\n\r\n",
    head("099 Low"),
    head("101 Switched"),
    head("999 High"),
    head("200 OK", "bad name: x\r\n"),
    head("200 OK", "Content-Length: -5\r\n"),
    head("200 OK", "Content-Length: 5\r\nContent-Length: 6\r\n"),
    head("200 OK", "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n"),
    head("200 OK", `X: ${"x".repeat(100_000)}\r\n`),
    head("200 OK", "X: y\r\n".repeat(10_000)),
    head("302 Round", "Location: /\r\nContent-Length: 0\r\n"),
    head("302 Nowhere", "Location: http://[\r\nContent-Length: 0\r\n"),
    head("302 Known", "Location: http://user:word@liar/\r\nContent-Length: 0\r\n"),
    "",
  ];
  await page.evaluate(async (answers) => {
    for (const [index, answer] of answers.entries()) {
      const listener = await node.listen(1000 + index);
      void (async () => {
        for await (const socket of listener) {
          await socket.read();
          await socket.write(answer).catch(() => undefined);
          await socket.shutdown().catch(() => undefined);
        }
      })();
    }
  }, answers);
  const codes = await client.evaluate(async (count) => {
    const one = async (index) => {
      const error = await node.fetch(`http://liar:${1000 + index}/`).then(() => undefined, (error) => error);
      return error?.message.length > 10 ? error.code : `bare ${error}`;
    };
    return Promise.all(Array.from({ length: count }, (_, index) => one(index)));
  }, answers.length);
  assert.deepEqual(codes, [...answers.slice(1).map(() => "EPROTO"), "ECONNRESET"]);
  for (const each of [page, client]) await each.context().close();
});

/** Heads in the smallest pieces, white space that is none of HTTP's, and connections whose end was announced. */
test("http: pieces, white space and ends are what the standard says", { timeout: LIMIT }, async () => {
  const page = await tab("exact");
  const client = await tab("precise");
  await page.evaluate(() =>
    node.serve({ port: 80 }, async (request, { headers }) => {
      const { pathname } = new URL(request.url);
      if (pathname === "/upgrade") return new Response("upgrade", { status: 426, headers: { upgrade: "websocket", connection: "upgrade" } });
      if (pathname === "/last") return new Response("last", { headers: { connection: "close, x-mine", "x-mine": "1", "keep-alive": "5" } });
      return new Response(`${headers.get("x-name") ?? ""}|${await request.text()}`);
    }),
  );
  const found = await client.evaluate(async () => {
    const bytes = (text) => Uint8Array.from(text, (character) => character.charCodeAt(0));
    const ask = async (...parts) => {
      const socket = await node.connect("exact", 80);
      await socket.setNoDelay();
      for (const part of parts) await socket.write(bytes(part));
      await socket.shutdown();
      return new TextDecoder("latin1").decode(await readAll(socket));
    };
    const head = "\r\nPOST / HTTP/1.1\r\nHost: exact\r\nX-Name: voil\u00c3\u00a0\r\nTransfer-Encoding: chunked\r\n\r\n";
    const single = await ask(...head, ..."3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: 1\r\n\r\n");
    const bare = await ask("GET / HTTP/1.1\nHost: exact\n", "\n");
    const post = (field) => ask(`POST / HTTP/1.1\r\nHost: exact\r\n${field}\r\n\r\nabc`);
    const odd = await Promise.all([post("Transfer-Encoding: \u00a0chunked"), post("Content-Length: 3\u00a0"), ask("\r\n".repeat(20_000))]);
    const last = await ask("GET /last HTTP/1.1\r\nHost: exact\r\n\r\nGET / HTTP/1.1\r\nHost: exact\r\n\r\n");
    // Whoever asks first whether the content is wanted hears it before the content is there.
    const socket = await node.connect("exact", 80);
    await socket.write("POST / HTTP/1.1\r\nHost: exact\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    const first = new TextDecoder().decode(await socket.read());
    await socket.write("abc");
    await socket.shutdown();
    const then = new TextDecoder().decode(await readAll(socket));
    const upgrade = await ask("GET /upgrade HTTP/1.1\r\nHost: exact\r\n\r\n");
    return { upgrade, single, bare, odd: odd.map((answer) => answer.slice(9, 12)), last, first: first.slice(9, 12), then: then.slice(9, 12) };
  });
  // The bytes of the field as letters, in UTF-8, as this decoder (of Windows) shows them.
  assert.match(found.single, /^HTTP\/1.1 200 OK\r\n[^]*\r\n\r\n[^]*voil\u00c3\u0192\u00c2\u00a0\|abcde/);
  assert.match(found.bare, /^HTTP\/1.1 200 OK/);
  assert.deepEqual(found.odd, ["400", "400", "400"]);
  assert.match(found.last, /^HTTP\/1.1 200 OK\r\n/);
  assert.match(found.last, /connection: close\r\n/);
  assert.doesNotMatch(found.last, /x-mine|keep-alive|HTTP[^]*HTTP/);
  assert.deepEqual([found.first, found.then], ["100", "200"]);
  assert.match(found.upgrade, /^HTTP\/1.1 426 .*\r\n[^]*connection: upgrade\r\n[^]*upgrade: websocket\r\n/);
  for (const each of [page, client]) await each.context().close();
});

test("http: content that is broken is its sender's mistake, packed content is unpacked, and who gives up need not wait", { timeout: LIMIT }, async () => {
  const web = await tab("packer");
  const client = await tab("unpacker");
  const complaints = [];
  web.on("console", (message) => message.type() === "error" && complaints.push(message.text()));
  await web.evaluate(async () => {
    const packed = async (text, how) => new Response(new Blob([text]).stream().pipeThrough(new CompressionStream(how))).bytes();
    await node.serve({ port: 80 }, async (request, { headers }) => {
      const { pathname } = new URL(request.url);
      if (pathname === "/count") return new Response(String((await request.arrayBuffer()).byteLength));
      if (pathname === "/fields") return Response.json(Object.fromEntries(headers));
      if (pathname === "/through") return node.fetch("http://packer/count", { method: "POST", headers, body: await request.arrayBuffer() });
      const how = pathname.slice(1);
      if (how === "empty") return new Response(new ReadableStream({ start: (stream) => stream.close() }), { headers: { "content-encoding": "gzip" } });
      if (how === "slow") {
        const begun = await packed("x".repeat(100_000), "gzip");
        const source = { start: (stream) => stream.enqueue(begun.subarray(0, begun.length - 9)), pull: () => new Promise(() => undefined) };
        return new Response(new ReadableStream(source), { headers: { "content-encoding": "gzip" } });
      }
      if (how === "broken") return new Response("no gzip", { headers: { "content-encoding": "gzip" } });
      const body = await packed("text ".repeat(10_000), how);
      return new Response(body, { headers: { "content-encoding": how, "content-length": String(body.length) } });
    });
  });
  const found = await client.evaluate(async () => {
    const status = async (text) => {
      const socket = await node.connect("packer", 80);
      await socket.write(text);
      await socket.shutdown();
      return new TextDecoder().decode(await readAll(socket)).split("\r\n", 1)[0];
    };
    const post = "POST /count HTTP/1.1\r\nHost: packer\r\n";
    const broken = [];
    for (const rest of ["Content-Length: 300\r\n\r\nabc", "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "Transfer-Encoding: chunked\r\n\r\n5\r\nab"]) {
      broken.push(await status(post + rest));
    }
    const chunked = await node.connect("packer", 80);
    await chunked.write("POST /through HTTP/1.1\r\nHost: packer\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n");
    const through = new TextDecoder().decode(await readAll(chunked)).split("\r\n", 1)[0];
    const unpacked = [];
    for (const how of ["gzip", "deflate"]) {
      const response = await node.fetch(`http://packer/${how}`);
      unpacked.push([(await response.text()).length, response.headers.get("content-encoding"), response.headers.get("content-length")]);
    }
    const codings = [];
    for (const headers of [{}, { range: "bytes=0-1" }, { "accept-encoding": "br" }]) {
      codings.push((await (await node.fetch("http://packer/fields", { headers })).json())["accept-encoding"]);
    }
    unpacked.push([(await (await node.fetch("http://packer/empty")).text()).length, null, null]);
    const stop = new AbortController();
    const begun = (await node.fetch("http://packer/slow", { signal: stop.signal })).body.getReader();
    await begun.read();
    stop.abort();
    let ended;
    while (!(ended ??= await begun.read().then(() => undefined, (error) => error.name))) continue;
    unpacked.push(ended);
    const wrong = await node.fetch("http://packer/broken").then((response) => response.text()).catch((error) => error.name);
    const fails = (url, init) => node.fetch(url, init).then(() => "answered", (error) => error.code ?? error.name);
    const body = () => new ReadableStream({ pull: () => new Promise(() => undefined) });
    const stuck = { method: "POST", duplex: "half" };
    const given = [
      await fails("http://packer/count", { ...stuck, body: body(), signal: AbortSignal.timeout(300) }),
      await fails("http://packer/count", { ...stuck, body: body(), signal: AbortSignal.abort() }),
      await fails("https://packer/count", { ...stuck, body: body() }),
    ];
    return { broken, through, unpacked, codings, wrong, given };
  });
  assert.deepEqual(found, {
    broken: Array(3).fill("HTTP/1.1 400 "),
    through: "HTTP/1.1 200 OK",
    unpacked: [...Array(2).fill([50_000, null, null]), [0, null, null], "AbortError"],
    codings: ["gzip, deflate", "identity", "br"],
    wrong: "TypeError",
    given: [23, 20, "EINVAL"],
  });
  assert.deepEqual(complaints, [], "a client's mistakes are nobody's to read");
  for (const page of [web, client]) await page.context().close();
});
