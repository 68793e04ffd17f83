import { type Head, parseChunkLine, parseRequest, parseResponse } from "../core/core.js";
import { aborting } from "./aborting.js";
import { bytesOf, failure, made, shown } from "./errors.js";
import type { Address } from "./calls.js";
import type { TcpListener, TcpSocket } from "./tcp.js";

/** Bytes of one head, and of a chunk's line. */
const HEAD_MAX = 64 * 1024;
/** How often a parser is asked for one head: it is seldom more than once. */
const TRIES_MAX = 64;
/** In milliseconds; a client from which nothing comes for so long is asked whether it is there. */
const PROBE_AFTER = 30_000;
const TOO_LONG = "the content is longer than this browser can take in a request\n";
const CHUNK_LINE_MAX = 1024;
/** How much of a request that nobody wants is read, in bytes and milliseconds, so that its answer arrives (RFC 9112, section 9.6). */
const UNWANTED_MAX = 16 * 1024 * 1024;
const UNWANTED_LIMIT = 10_000;
/** How long a handler that has answered may take before it asks for more of the request, in milliseconds. */
const HANDLER_PAUSE = 1_000;
/** How long one part of a request or an answer may take to come or go, in milliseconds. */
const PROGRESS_LIMIT = 120_000;
/** What the other end has to take within that, in bytes. */
const PART = 256 * 1024;
/** Connections of one server; what exceeds them is reset. */
const CONNECTIONS_MAX = 1024;
/** An address may have so large a part of the connections that are free: however many come, others find some. */
const SHARE = 4;
/** How long a connection may take to send the head of a request, in milliseconds. */
const IDLE_LIMIT = 60_000;
/** Content of a request where a browser takes it only whole, in bytes. */
const WHOLE_MAX = 64 * 1024 * 1024;
/** Redirects that are followed (the Fetch standard's limit). */
const REDIRECTS_MAX = 20;
/** Statuses whose responses have no content. */
const NULL_BODY = [101, 103, 204, 205, 304];

/** What a handler is told besides the request. */
export interface RequestInfo {
  /** Who asks. */
  remote: { address: string; port: number };
  /** All fields of the request; `Request` leaves some out that browsers reserve for themselves. */
  headers: Headers;
}

/** What `Node.fetch` takes besides what `fetch` does. */
export interface FetchInit extends RequestInit {
  /** The field `Host` of the request, if it is not that of the URL. */
  host?: string;
}

/** Answers a request. */
export type Handler = (request: Request, info: RequestInfo) => Response | Promise<Response>;

/** Whether something may have come to its end, in bytes of which the first ones were looked at before. */
type Ending = (bytes: Uint8Array, known: number) => boolean;

const aLine: Ending = (bytes, known) => bytes.indexOf(10, known) >= 0;

/** Heads and trailers end with an empty line; some leave the carriage return out (RFC 9112, section 2.2). */
const anEmptyLine: Ending = (bytes, known) => {
  for (let at = bytes.indexOf(10, known); at >= 0; at = bytes.indexOf(10, at + 1)) {
    const before = bytes[at - 1] === 13 ? at - 2 : at - 1;
    if (before < 0 || bytes[before] === 10) return true;
  }
  return false;
};

const anything: Ending = () => true;

/** Takes a connection apart into heads and bytes. */
class Reader {
  readonly #socket: TcpSocket;
  #held: Uint8Array = new Uint8Array(0);
  /** What is held with room behind it, once it had to be joined. */
  #room: Uint8Array = this.#held;
  /** Whether a connection that brings nothing for {@link PROGRESS_LIMIT} is reset. */
  timely = false;

  constructor(socket: TcpSocket) {
    this.#socket = socket;
  }

  /** Reads more; returns whether there was some. */
  async #fill(): Promise<boolean> {
    const more = await (this.timely ? within(this.#socket, this.#socket.read()) : this.#socket.read());
    if (!more) return false;
    if (this.#held.length === 0) {
      this.#held = more;
      return true;
    }
    const [from, length] = [this.#held.byteOffset, this.#held.length + more.length];
    if (this.#held.buffer !== this.#room.buffer || from + length > this.#room.length) {
      // Twice as much each time: whoever sends bytes one by one does not have all copied for each of them.
      this.#room = new Uint8Array(2 * length);
      this.#room.set(this.#held);
      this.#held = this.#room.subarray(0, this.#held.length);
    }
    this.#room.set(more, this.#held.byteOffset + this.#held.length);
    this.#held = this.#room.subarray(this.#held.byteOffset, this.#held.byteOffset + length);
    return true;
  }

  /**
   * Reads something with a parser that says how long it was; returns nothing at the end of the stream. The parser is asked
   * again when what `ends` looks for has come, and not for every byte.
   */
  async parsed<T extends { len: number }>(parse: (bytes: Uint8Array) => T | undefined, ends: Ending, most = HEAD_MAX): Promise<T | undefined> {
    let [known, tries] = [0, 0];
    for (;;) {
      const held = this.#held.subarray(0, most);
      const worth = held.length > 0 && (known === 0 || held.length === most || ends(held, known));
      if (worth && (tries += 1) > TRIES_MAX) throw failure("EPROTO", "there are too many empty lines before a message");
      const found = worth ? parse(held) : undefined;
      known = held.length;
      if (found) {
        this.#held = this.#held.subarray(found.len);
        return found;
      }
      if (this.#held.length >= most) throw failure("EPROTO", `the head of a message or chunk is longer than ${most} bytes`);
      if (!(await this.#fill())) {
        if (this.#held.length === 0) return undefined;
        throw failure("ECONNRESET", "the connection ended in the middle of a message");
      }
    }
  }

  /** Reads some bytes, at most so many; returns nothing at the end of the stream. */
  async some(most: number): Promise<Uint8Array | undefined> {
    if (this.#held.length === 0 && !(await this.#fill())) return undefined;
    const part = this.#held.subarray(0, most);
    this.#held = this.#held.subarray(part.length);
    return part;
  }
}

/** How the end of a message's content is found (RFC 9112, section 6.3). */
type Framing = { kind: "none" } | { kind: "length"; left: number } | { kind: "chunked" } | { kind: "close" };

/** Without the white space of HTTP, which is spaces and tabs (RFC 9110, section 5.6.3). */
function trimmed(text: string): string {
  return text.replace(/^[ \t]+|[ \t]+$/g, "");
}

function isToken(text: string): boolean {
  return /^[\w!#$%&'*+.^`|~-]+$/.test(text);
}

/** The elements of a field that is a list, in small letters. */
function listed(headers: Headers, name: string): string[] {
  return (headers.get(name) ?? "").toLowerCase().split(",").map(trimmed);
}

function framing(headers: Headers, otherwise: "none" | "close"): Framing {
  const coding = headers.get("transfer-encoding");
  if (coding !== null) {
    if (trimmed(coding).toLowerCase() !== "chunked") throw failure("EPROTO", `the transfer coding '${coding}' is unknown`);
    if (headers.has("content-length")) throw failure("EPROTO", "a message has one framing, not two");
    return { kind: "chunked" };
  }
  const length = headers.get("content-length");
  if (length !== null) {
    const lengths = new Set(length.split(",").map(trimmed));
    const [only] = lengths;
    if (lengths.size !== 1 || only === undefined || !/^\d{1,15}$/.test(only)) {
      throw failure("EPROTO", `the content's length '${length}' is no number`);
    }
    return Number(only) === 0 ? { kind: "none" } : { kind: "length", left: Number(only) };
  }
  return { kind: otherwise };
}

/** Resets a connection on which something takes too long. */
async function within<T>(socket: TcpSocket, work: Promise<T>): Promise<T> {
  const timer = setTimeout(() => socket.reset(), PROGRESS_LIMIT);
  try {
    return await work;
  } finally {
    clearTimeout(timer);
  }
}

/** Writes something of which the other end has to take each part in time. */
async function put(socket: TcpSocket, data: Uint8Array | string): Promise<void> {
  const bytes = bytesOf(data);
  for (let at = 0; at < bytes.length; at += PART) await within(socket, socket.write(bytes.subarray(at, at + PART)));
}

/** The content of a request: the handler's while it reads, and after the answer what precedes the next request. */
class Content {
  readonly #parts: AsyncGenerator<Uint8Array, void>;
  #complete = false;
  /** Pieces that the handler has got, whether it has not come to the end, and whether it waits for the next. */
  #pieces = 0;
  #reads = false;
  #waits = false;
  #over: () => void = () => undefined;
  #withheld = false;
  /** Why it could not be read: its sender's mistake. */
  broken: Error | undefined;

  constructor(reader: Reader, how: Framing) {
    this.#parts = this.#read(reader, how);
  }

  async *#read(reader: Reader, how: Framing): AsyncGenerator<Uint8Array, void> {
    try {
      yield* content(reader, how);
    } catch (error) {
      this.broken = error as Error;
      throw error;
    }
    this.#complete = true;
  }

  /** What the handler reads; never a part of it with something missing before. */
  async *handed(): AsyncGenerator<Uint8Array, void> {
    this.#reads = true;
    try {
      for (;;) {
        if (this.#withheld) throw failure("ECONNRESET", "the answer was sent before this was read");
        this.#waits = true;
        const { value, done } = await this.#parts.next().finally(() => (this.#waits = false));
        if (done) return;
        this.#pieces += 1;
        yield value;
      }
    } finally {
      this.#reads = false;
      this.#over();
    }
  }

  /** Waits for a handler that has answered and reads on, as long as it gets something; later ones get nothing. */
  async finished(): Promise<void> {
    for (let before = -1; this.#reads && this.#pieces !== before; ) {
      before = this.#pieces;
      await new Promise<void>((resolve) => {
        // One that has a piece may be done with it, and with all.
        const timer = setTimeout(resolve, this.#waits ? UNWANTED_LIMIT : HANDLER_PAUSE);
        this.#over = () => {
          clearTimeout(timer);
          resolve();
        };
      });
    }
    this.#withheld = true;
  }

  /** Reads what nobody wanted; returns whether the next request begins behind it. */
  async drained(): Promise<boolean> {
    let left = UNWANTED_MAX;
    for await (const part of this.#parts) if ((left -= part.length) < 0) break;
    return this.#complete;
  }
}

/** Ends a connection so that what was sent arrives, whatever the other end still sends (RFC 9112, section 9.6). */
async function linger(socket: TcpSocket): Promise<void> {
  const timer = setTimeout(() => socket.close(), UNWANTED_LIMIT);
  try {
    await socket.shutdown().catch(() => undefined);
    let left = UNWANTED_MAX;
    for (let part = await socket.read(); part && left > 0; part = await socket.read()) left -= part.length;
  } catch {
    // It is over for the other end.
  } finally {
    clearTimeout(timer);
    socket.close();
  }
}

/** The content of a message, in pieces. */
async function* content(reader: Reader, how: Framing): AsyncGenerator<Uint8Array, void> {
  const cut = (): never => {
    throw failure("ECONNRESET", "the connection ended in the middle of the content");
  };
  switch (how.kind) {
    case "none":
      return;
    case "close":
      for (let part = await reader.some(HEAD_MAX); part; part = await reader.some(HEAD_MAX)) yield part;
      return;
    case "length":
      for (let left = how.left; left > 0; ) {
        const part = (await reader.some(left)) ?? cut();
        left -= part.length;
        yield part;
      }
      return;
    case "chunked":
      for (;;) {
        const line = (await reader.parsed(parseChunkLine, aLine, CHUNK_LINE_MAX)) ?? cut();
        const size = line.size;
        line.free();
        for (let left = size; left > 0; ) {
          const part = (await reader.some(left)) ?? cut();
          left -= part.length;
          yield part;
        }
        await (size === 0 ? reader.parsed(trailers, anEmptyLine) : reader.parsed(lineEnd, anything, 2));
        if (size === 0) return;
      }
  }
}

/** The line end behind a chunk. */
function lineEnd(bytes: Uint8Array): { len: number } | undefined {
  if (bytes.length < 2) return undefined;
  if (bytes[0] !== 13 || bytes[1] !== 10) throw failure("EPROTO", "a chunk is longer than it says");
  return { len: 2 };
}

/** Trailers, which nobody needs here, to the empty line. */
function trailers(bytes: Uint8Array): { len: number } | undefined {
  if (bytes[0] === 13 && bytes[1] === 10) return { len: 2 };
  for (let at = 0; at + 3 < bytes.length; at += 1) {
    if (bytes[at] === 13 && bytes[at + 1] === 10 && bytes[at + 2] === 13 && bytes[at + 3] === 10) return { len: at + 4 };
  }
  return undefined;
}

/** Where a request goes (RFC 9112, section 3.2): what begins with two slashes is a path, and names no host. */
function urlOf(target: string, headers: Headers, minor: number, local: string): URL {
  const host = headers.get("host");
  if (minor >= 1 && host === null) throw failure("EPROTO", "the request names no host");
  // Fields of one name are joined by commas.
  if (host !== null && /[\s,/?#@\\]/.test(host)) throw failure("EPROTO", `'${host}' is no host`);
  if (target === "*") return new URL(`http://${host || local}/`);
  if (target.startsWith("/")) return new URL(`http://${host || local}${target}`);
  const url = new URL(target);
  if (url.protocol !== "http:") throw failure("EPROTO", `'${target}' is nothing of this server`);
  return url;
}

function headersOf(head: Head): Headers {
  const headers = new Headers();
  const fields = head.fields;
  for (let at = 0; at + 1 < fields.length; at += 2) {
    headers.append(fields[at] as string, fields[at + 1] as string);
  }
  return headers;
}

/** Calls `done` for streams that nobody has any more: what they came from ends. */
const forgotten = new FinalizationRegistry<() => void>((done) => done());

function stream(parts: AsyncGenerator<Uint8Array, void>, done: () => void): ReadableStream<Uint8Array> {
  const source: UnderlyingDefaultSource<Uint8Array> = {
    async pull(controller) {
      const { value, done: ended } = await parts.next().catch((error: unknown) => {
        done();
        throw error;
      });
      if (value) controller.enqueue(value);
      if (ended) {
        done();
        controller.close();
      }
    },
    async cancel() {
      // First: the end of the connection is what ends a part that is being waited for.
      done();
      void parts.return().catch(() => undefined);
    },
  };
  // It lives as long as something can still read the stream. The stream's own object may be gone before: a response
  // that is being read holds no more than what is behind it.
  forgotten.register(source, done);
  return new ReadableStream<Uint8Array>(source, { highWaterMark: 0 });
}

/** How content is sent; `gone` is aborted when nobody takes it any more. */
interface Sending {
  chunked: boolean;
  length: number | undefined;
  gone: AbortSignal;
}

/** What a handler has done wrong, which its author learns here: the other end sees a reset only. */
function mistake(text: string): Error {
  const error = failure("EPROTO", text);
  console.error(error);
  return error;
}

/** Writes content of so many bytes, or in chunks, or to the end of the connection. */
async function send(socket: TcpSocket, body: ReadableStream<Uint8Array>, { chunked, length, gone }: Sending): Promise<void> {
  const reader = body.getReader();
  let left = length ?? Infinity;
  // The handler may have nothing to say for long: it learns at once that nobody listens any more.
  const cancel = (): void => void reader.cancel(gone.reason).catch(() => undefined);
  gone.addEventListener("abort", cancel);
  try {
    for (;;) {
      const { value, done } = await reader.read();
      gone.throwIfAborted();
      if (done) break;
      // As the Fetch standard has it; lengths of anything else are not of bytes.
      if (!(value instanceof Uint8Array)) throw mistake(`a piece of the handler's content is ${shown(value)}, and no Uint8Array`);
      if (value.length === 0) continue;
      left -= value.length;
      if (left < 0) throw mistake(`the handler's content is longer than its content-length of ${length}`);
      if (chunked) await put(socket, `${value.length.toString(16)}\r\n`);
      await put(socket, value);
      if (chunked) await put(socket, "\r\n");
    }
    if (length !== undefined && left > 0) throw mistake(`the handler's content is shorter than its content-length of ${length}`);
    if (chunked) await put(socket, "0\r\n\r\n");
  } catch (error) {
    // Whoever makes the content learns that nobody takes it any more.
    await reader.cancel(error).catch(() => undefined);
    throw error;
  } finally {
    gone.removeEventListener("abort", cancel);
    reader.releaseLock();
  }
}

/** The head of a message: texts of HTTP are of bytes, one for each character (ISO 8859-1), as they are when they are read. */
function lines(first: string, headers: Headers): Uint8Array {
  let head = `${first}\r\n`;
  headers.forEach((value, name) => (head += `${name}: ${value}\r\n`));
  return Uint8Array.from(`${head}\r\n`, (character) => character.charCodeAt(0));
}

/** A server of HTTP/1.1 on a listener. */
export class HttpServer {
  readonly #listener: TcpListener;
  readonly #handler: Handler;
  readonly #connections = new Set<TcpSocket>();
  readonly #addresses = new Map<string, number>();
  readonly port: number;

  /** For `Node.serve`. */
  constructor(listener: TcpListener, handler: Handler) {
    this.#listener = listener;
    this.#handler = handler;
    this.port = listener.local.port;
    void this.#accept();
  }

  async #accept(): Promise<void> {
    for await (const socket of this.#listener) {
      const { address } = socket.remote;
      const others = this.#addresses.get(address) ?? 0;
      if (this.#connections.size >= CONNECTIONS_MAX || others >= (CONNECTIONS_MAX - this.#connections.size) / SHARE) {
        socket.reset();
        continue;
      }
      this.#connections.add(socket);
      this.#addresses.set(address, others + 1);
      void this.#converse(socket)
        .catch(() => socket.reset())
        .finally(() => {
          socket.close();
          this.#connections.delete(socket);
          const left = (this.#addresses.get(address) ?? 1) - 1;
          if (left > 0) this.#addresses.set(address, left);
          else this.#addresses.delete(address);
        });
    }
  }

  async #converse(socket: TcpSocket): Promise<void> {
    await socket.setNoDelay();
    // One that has ended its side may listen on, or be gone: then its system says so when it is asked.
    await socket.setKeepAlive(true, PROBE_AFTER);
    const reader = new Reader(socket);
    reader.timely = true;
    // A client that goes ends what is being done for it.
    let current: AbortController | undefined;
    let over = false;
    void socket.over().then(() => {
      over = true;
      current?.abort(failure("ECONNRESET", "the client has gone"));
    });
    for (;;) {
      let head: Head | undefined;
      const idle = setTimeout(() => socket.close(), IDLE_LIMIT);
      try {
        head = await reader.parsed(parseRequest, anEmptyLine);
      } catch (error) {
        return await refuse(socket, 400, `${(error as Error).message}\n`);
      } finally {
        clearTimeout(idle);
      }
      if (!head) return;
      if (over) return head.free();
      current = new AbortController();
      const goesOn = await this.#exchange(socket, reader, head, current.signal).finally(() => (current = undefined));
      if (!goesOn) return;
    }
  }

  /** Answers one request; returns whether another may follow. */
  async #exchange(socket: TcpSocket, reader: Reader, head: Head, gone: AbortSignal): Promise<boolean> {
    const [method, target, minor] = [head.first, head.second, head.minor];
    const headers = headersOf(head);
    head.free();
    let how: Framing;
    let request: Request | undefined;
    let incoming: Content;
    try {
      how = framing(headers, "none");
      incoming = new Content(reader, how);
      const { address } = socket.local;
      const url = urlOf(target, headers, minor, address.includes(":") ? `[${address}]` : address);
      const bodyless = how.kind === "none" || method === "GET" || method === "HEAD";
      const init = { method, headers, signal: gone };
      if (how.kind === "length" && how.left > WHOLE_MAX && !bodyless && !takesStreams()) {
        await refuse(socket, 413, TOO_LONG);
        return false;
      }
      // Before the content is waited for (RFC 9110, section 10.1.1).
      if (minor >= 1 && listed(headers, "expect").includes("100-continue")) await put(socket, "HTTP/1.1 100 Continue\r\n\r\n");
      request = bodyless ? new Request(url, init) : await withBody(url, init, incoming.handed());
    } catch (error) {
      await refuse(socket, 400, `${(error as Error).message}\n`);
      return false;
    }
    if (!request) {
      await refuse(socket, 413, TOO_LONG);
      return false;
    }
    let response: Response;
    try {
      response = usable(await this.#handled(request, { remote: socket.remote, headers }, gone));
    } catch (error) {
      gone.throwIfAborted();
      if (incoming.broken) {
        await refuse(socket, 400, `${incoming.broken.message}\n`);
        return false;
      }
      console.error(error);
      response = new Response("the page's handler failed; its console says why\n", { status: 500 });
    }
    const again = minor >= 1 && ![headers, new Headers(response.headers)].some((each) => listed(each, "connection").includes("close"));
    await respond(socket, response, { method, minor, again, gone });
    // Whoever has its answer need not wait for what becomes of the request.
    if (!again) await socket.shutdown().catch(() => undefined);
    await incoming.finished();
    // What the handler left unread precedes the next request.
    if (again && (await incoming.drained().catch(() => false))) return true;
    await linger(socket);
    return false;
  }

  /** Waits for the handler's answer, but no longer than somebody waits for it. */
  async #handled(request: Request, about: { remote: Address; headers: Headers }, gone: AbortSignal): Promise<Response> {
    const handled = Promise.resolve(this.#handler(request, about));
    try {
      return await aborting(handled, gone);
    } catch (error) {
      // An answer that comes too late is for nobody.
      if (gone.aborted) void handled.then((late) => late.body?.cancel(gone.reason)).catch(() => undefined);
      throw error;
    }
  }

  /** Stops listening, and closes what is open. */
  close(): void {
    this.#listener.close();
    for (const socket of this.#connections) socket.close();
  }
}

/** Whether requests of this browser can have streams for content: others would send the name of the class. */
function takesStreams(): boolean {
  try {
    const body = new ReadableStream();
    const init: RequestInit & { duplex: "half" } = { method: "POST", body, duplex: "half" };
    return !new Request("http://localhost/", init).headers.has("content-type");
  } catch {
    return false;
  }
}

/** Makes a request with content; none if that is too long for a browser that takes it only whole. */
async function withBody(url: URL, init: RequestInit, parts: AsyncGenerator<Uint8Array, void>): Promise<Request | undefined> {
  if (takesStreams()) {
    // TypeScript's types do not know `duplex`, which the standard asks for.
    const streaming: RequestInit & { duplex: "half" } = { ...init, body: stream(parts, () => undefined), duplex: "half" };
    return new Request(url, streaming);
  }
  const held: Uint8Array<ArrayBuffer>[] = [];
  let length = 0;
  for await (const part of parts) {
    length += part.length;
    if (length > WHOLE_MAX) return undefined;
    held.push(new Uint8Array(part));
  }
  const whole = new Blob(held);
  const request = new Request(url, { ...init, body: whole });
  if (!request.body) Object.defineProperty(request, "body", { value: whole.stream() });
  return request;
}

/** Checks what a handler has returned. */
function usable(response: Response): Response {
  const status = (response as { status?: unknown } | undefined | null)?.status;
  if (typeof status !== "number" || status < 200) throw new TypeError("the handler of 'serve' has to return a Response");
  if (response.bodyUsed) throw new TypeError("the handler of 'serve' has returned a Response whose body was read before");
  return response;
}

async function respond(
  socket: TcpSocket,
  response: Response,
  { method, minor, again, gone }: { method: string; minor: number; again: boolean; gone: AbortSignal },
): Promise<void> {
  const headers = new Headers(response.headers);
  const bodyless = NULL_BODY.includes(response.status) || response.body === null;
  let chunked = false;
  // What is of one connection only is this one's (RFC 9110, section 7.6.1).
  const ours = ["transfer-encoding", "connection", "keep-alive", "upgrade", "trailer", ...listed(headers, "connection").filter(isToken)];
  // Of this answer it is the point (RFC 9110, section 15.5.22).
  const upgrade = response.status === 426 ? headers.get("upgrade") : null;
  ours.forEach((name) => headers.delete(name));
  if (upgrade !== null) headers.set("upgrade", upgrade);
  // A length that is none says nothing, and the standard has these statuses go without, or with that of nothing.
  const declared = headers.get("content-length");
  if (declared !== null && (!/^\d{1,15}$/.test(declared) || [101, 103, 204, 205].includes(response.status))) headers.delete("content-length");
  if (response.status === 205) headers.set("content-length", "0");
  if (bodyless) {
    // Of what HEAD asks about, the handler may know the length.
    const knows = method === "HEAD" && headers.has("content-length");
    if (!knows && !NULL_BODY.includes(response.status)) headers.set("content-length", "0");
  } else if (!headers.has("content-length")) {
    chunked = minor >= 1;
    if (chunked) headers.set("transfer-encoding", "chunked");
  }
  const ends = !again || (!bodyless && !chunked && !headers.has("content-length"));
  const words = [...(upgrade === null ? [] : ["upgrade"]), ...(ends ? ["close"] : [])];
  if (words.length > 0) headers.set("connection", words.join(", "));
  if (!headers.has("date")) headers.set("date", new Date().toUTCString());
  const head = lines(`HTTP/1.1 ${response.status} ${response.statusText || (response.ok ? "OK" : "")}`, headers);
  await put(socket, head).catch(async (error: unknown) => {
    await response.body?.cancel(error).catch(() => undefined);
    throw error;
  });
  const length = headers.get("content-length");
  if (response.body && !bodyless && method !== "HEAD") await send(socket, response.body, { chunked, length: length === null ? undefined : Number(length), gone });
  else await response.body?.cancel();
}

async function refuse(socket: TcpSocket, status: number, text: string): Promise<void> {
  const response = new Response(text, { status, headers: { "content-type": "text/plain; charset=utf-8" } });
  await respond(socket, response, { method: "GET", minor: 0, again: false, gone: new AbortController().signal });
  await linger(socket);
}

/** Fetches over the network: `http:` only, for every packet of it is sealed on its way. */
export async function fetchOver(
  connect: (host: string, port: number, signal: AbortSignal) => Promise<TcpSocket>,
  input: RequestInfo_ | URL | string,
  init?: FetchInit,
): Promise<Response> {
  if (!(input instanceof Request) && !URL.canParse(String(input))) {
    throw failure("EINVAL", `'${shown(input)}' is no address of a page; write http://MEMBER/`);
  }
  let request = made(() => new Request(input instanceof Request ? input : new URL(String(input)), init));
  // A field that none can be is found before anybody is asked.
  made(() => new Headers({ host: init?.host ?? "" }));
  const fields = made(() => new Headers(init?.headers ?? (input instanceof Request ? input.headers : undefined)));
  speakable(request);
  // Not all browsers say whether a request has content.
  let body = ["GET", "HEAD"].includes(request.method) ? undefined : new Uint8Array(await aborting(request.arrayBuffer(), request.signal));
  HOP_BY_HOP.forEach((name) => fields.delete(name));
  // The type that the request has found for its content is that of every repetition.
  const type = request.headers.get("content-type");
  if (body && type && !fields.has("content-type")) fields.set("content-type", type);
  for (let turn = 0; ; turn += 1) {
    const response = await exchange(connect, request, { fields, body, host: turn === 0 ? init?.host : undefined });
    const location = response.headers.get("location");
    const redirects = [301, 302, 303, 307, 308].includes(response.status) && location !== null;
    if (turn > 0) Object.defineProperty(response, "redirected", { value: true });
    if (!redirects || request.redirect === "manual") return response;
    if (request.redirect === "error" || turn >= REDIRECTS_MAX) {
      await response.body?.cancel();
      throw failure("EPROTO", request.redirect === "error" ? "the answer is a redirect" : "there are more than 20 redirects");
    }
    await response.body?.cancel();
    const drops = response.status === 303 || ([301, 302].includes(response.status) && request.method === "POST");
    if (drops) {
      body = undefined;
      ["content-length", "content-type", "content-encoding", "transfer-encoding"].forEach((name) => fields.delete(name));
    }
    const method = drops && request.method !== "HEAD" ? "GET" : request.method;
    const before = new URL(request.url);
    try {
      request = new Request(new URL(location, before), { method, signal: request.signal, redirect: request.redirect });
    } catch {
      throw failure("EPROTO", `the answer leads to '${location}', which nobody can ask`);
    }
    if (new URL(request.url).origin !== before.origin) ["authorization", "cookie"].forEach((name) => fields.delete(name));
  }
}

type RequestInfo_ = Request;

/** Fields that are of one connection, or of one framing, and not of who passes them on (RFC 9110, section 7.6.1). */
const HOP_BY_HOP = ["keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"];

/** Checks that a request can be made here at all. */
function speakable(request: Request): void {
  const { protocol } = new URL(request.url);
  if (protocol !== "http:") throw failure("EINVAL", `'${protocol}' is not spoken here; use http:, the links of the network are sealed`);
}

/** Returns what content is packed with, if it is unpacked here. */
function packing(headers: Headers): "gzip" | "deflate" | undefined {
  const coding = headers.get("content-encoding")?.trim().toLowerCase();
  if (coding === "gzip" || coding === "x-gzip") return "gzip";
  return coding === "deflate" ? coding : undefined;
}

/** Unpacks content if it is packed; what was said of it then is of what it was. */
function unpacked(parts: AsyncGenerator<Uint8Array, void>, headers: Headers): AsyncGenerator<Uint8Array, void> {
  const packed = packing(headers);
  if (!packed) return parts;
  ["content-encoding", "content-length"].forEach((name) => headers.delete(name));
  return unpack(parts, packed);
}

/** Nothing is read before somebody asks, and no more than what was asked for needs. */
async function* unpack(parts: AsyncGenerator<Uint8Array, void>, packed: CompressionFormat): AsyncGenerator<Uint8Array, void> {
  const { readable, writable } = new DecompressionStream(packed);
  const [reader, writer] = [readable.getReader(), writable.getWriter()];
  // What fails to be written fails to be read.
  const settled = <T>(work: Promise<T>): Promise<T> => (work.catch(() => undefined), work);
  try {
    let next = settled(reader.read());
    let empty = true;
    for await (const part of parts) {
      empty = false;
      void settled(writer.write(part as Uint8Array<ArrayBuffer>));
      // What has come of it so far; a piece may give many, or none yet.
      for (;;) {
        const done = await Promise.race([next, writer.ready.then(() => undefined)]);
        if (!done) break;
        if (done.value) yield done.value;
        next = settled(reader.read());
      }
    }
    // Nothing at all is nothing, however it is packed.
    if (empty) return;
    void settled(writer.close());
    for (let last = await next; !last.done; last = await reader.read()) yield last.value;
  } finally {
    void settled(writer.abort());
    await parts.return();
  }
}

/** What comes, until it is aborted: with the reason that was given for that. */
async function* heeding(parts: AsyncGenerator<Uint8Array, void>, signal: AbortSignal): AsyncGenerator<Uint8Array, void> {
  try {
    yield* parts;
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  }
}

async function exchange(
  connect: (host: string, port: number, signal: AbortSignal) => Promise<TcpSocket>,
  request: Request,
  { fields, body, host }: { fields: Headers; body: Uint8Array | undefined; host: string | undefined },
): Promise<Response> {
  speakable(request);
  const url = new URL(request.url);
  const { signal } = request;
  const socket = await connect(url.hostname, Number(url.port || 80), signal);
  const abort = (): void => socket.reset();
  signal.addEventListener("abort", abort);
  const done = (): void => {
    signal.removeEventListener("abort", abort);
    socket.close();
  };
  try {
    const headers = new Headers(fields);
    headers.set("host", host ?? url.host);
    headers.set("connection", "close");
    if (!headers.has("accept")) headers.set("accept", "*/*");
    // A range is one of what is sent, packed or not.
    if (!headers.has("accept-encoding")) headers.set("accept-encoding", headers.has("range") ? "identity" : "gzip, deflate");
    if (body) headers.set("content-length", String(body.length));
    await socket.write(lines(`${request.method} ${url.pathname}${url.search} HTTP/1.1`, headers));
    // Whoever answers before all has come, or as it comes, is heard.
    const sending = body ? socket.write(body) : Promise.resolve();
    sending.catch(() => undefined);
    const reader = new Reader(socket);
    for (;;) {
      const head = await reader.parsed(parseResponse, anEmptyLine);
      if (!head) {
        await sending;
        throw failure("ECONNRESET", "the connection ended before an answer came");
      }
      const [status, statusText, received] = [Number(head.first), head.second, headersOf(head)];
      head.free();
      if (status >= 100 && status < 200 && status !== 101) continue;
      if (status < 200 || status > 599) throw failure("EPROTO", `${status} is no status that an answer may have`);
      const empty = NULL_BODY.includes(status) || request.method === "HEAD";
      const how = empty ? ({ kind: "none" } as const) : framing(received, "close");
      if (how.kind === "none") done();
      const unread = how.kind === "none" ? null : stream(heeding(unpacked(content(reader, how), received), signal), done);
      const response = new Response(empty ? null : unread, { status, statusText, headers: received });
      Object.defineProperty(response, "url", { value: request.url });
      return response;
    }
  } catch (error) {
    done();
    signal.throwIfAborted();
    throw error;
  }
}
