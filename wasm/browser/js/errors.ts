/** An error of the network, with a code as in Node.js: `ECONNREFUSED`, `EHOSTUNREACH`, `EINVAL`, … */
export interface NetworkError extends Error {
  code: string;
}

/** Makes an error with a code; its message says what to do. */
export function failure(code: string, message: string): NetworkError {
  return Object.assign(new Error(message), { code });
}

/** How a value is shown in an error: not whole if it is long. */
export function shown(value: unknown): string {
  const text = typeof value === "object" && value !== null ? (Array.isArray(value) ? "an array" : "an object") : String(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}

/** Checks options: an object, or nothing. */
export function optionsOf<T extends object>(value: T | null | undefined): T {
  if (value === undefined || value === null) return {} as T;
  if (typeof value !== "object") throw failure("EINVAL", `options are an object, such as { port: 80 }, not ${shown(value)}`);
  return value;
}

/** Makes something of what a program has given; what the browser says against it is the error's text. */
export function made<T>(make: () => T): T {
  try {
    return make();
  } catch (error) {
    throw failure("EINVAL", (error as Error).message);
  }
}

/** Checks a port. */
export function portOf(value: unknown, what = "port", least = 0): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > 65535) {
    throw failure("EINVAL", `the ${what} is a whole number from ${least} to 65535, not ${shown(value)}`);
  }
  return value;
}

/** Checks a port as Node.js does, which takes it as a text, too. */
export function nodePortOf(value: unknown, what = "port", least = 0): number {
  return portOf(typeof value === "string" && /^\d+$/.test(value) ? Number(value) : value, what, least);
}

/** Leaves what a listener has thrown to whoever looks after such errors: it is no error of the network. */
export function leave(error: unknown): void {
  queueMicrotask(() => {
    throw error;
  });
}

/** Checks a number. */
export function numberOf(value: unknown, what: string, least: number, most: number): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > most) {
    throw failure("EINVAL", `${what} is a whole number from ${least} to ${most}, not ${shown(value)}`);
  }
  return value;
}

/** What can be sent. */
export type Data = string | ArrayBuffer | ArrayBufferView;

/** Returns the bytes of what is to be sent: of text its UTF-8. */
export function bytesOf(value: unknown): Uint8Array {
  if (typeof value === "string") return new TextEncoder().encode(value);
  if (value instanceof Uint8Array) return value;
  if (value instanceof ArrayBuffer) return new Uint8Array(value);
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
  const kind = value === null ? "null" : Array.isArray(value) ? "an array" : typeof value;
  throw failure("EINVAL", `what is sent is a text, an ArrayBuffer or a view of one (such as a Uint8Array), not ${kind}`);
}

/** Checks the text of an address with its port. */
export function endpointOf(value: unknown): string {
  if (typeof value !== "string" || !/^(\[[^\]]+\]|[^:]+):\d+$/.test(value)) {
    throw failure("EINVAL", `a destination looks like '10.80.0.1:53' or '[fd75:6e69::1]:53', not '${shown(value)}'`);
  }
  return value;
}

/** Checks a host: a name or an address. */
export function hostOf(value: unknown): string {
  if (typeof value !== "string" || value === "" || value.length > 253 || /[\s/@]/.test(value)) {
    throw failure("EINVAL", `the host is a member's name or an address, not '${shown(value)}'`);
  }
  return value;
}
