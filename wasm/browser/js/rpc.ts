// What a page and the worker with its node's stack say to each other.

import type { Calls, Connections, MembershipEvent, Reports, Settings } from "./calls.js";
import { Carriers } from "./carriers.js";
import { failure } from "./errors.js";

/** What a worker needs to begin. */
export interface Beginning {
  module: WebAssembly.Module;
  url: string;
  settings: Settings;
  key: Uint8Array;
}

/** From the page to its worker. */
export type ToWorker =
  | { kind: "begin"; id: number; beginning: Beginning }
  | { kind: "call"; id: number; method: keyof Calls; args: unknown[]; spent: ArrayBuffer[] }
  | { kind: "report"; method: keyof Reports; args: unknown[] };

/** From the worker to its page. */
export type ToPage =
  | { kind: "ready" }
  | { kind: "answer"; id: number; value: unknown; spent: ArrayBuffer[] }
  | { kind: "failure"; id: number; code: string; message: string }
  | { kind: "connection"; method: keyof Connections; args: unknown[] }
  | { kind: "event"; event: MembershipEvent };

/** Returns the memory that is handed over with a value instead of copied. */
export function handedOver(value: unknown): Transferable[] {
  if (value instanceof Uint8Array) return [value.buffer as ArrayBuffer];
  const data = (value as { data?: unknown } | undefined | null)?.data;
  return data instanceof Uint8Array ? [data.buffer as ArrayBuffer] : [];
}

/** Calls that travel to a worker and back. */
export class Caller {
  readonly #worker: Worker;
  readonly #pending = new Map<number, { resolve: (value: unknown) => void; reject: (error: Error) => void }>();
  #last = 0;
  #ended = false;
  readonly #carriers = new Carriers();
  /** The calls, as `Calls` has them. */
  readonly calls: Calls;

  constructor(worker: Worker) {
    this.#worker = worker;
    this.calls = new Proxy({} as Calls, {
      get: (_, method: string) =>
        method === "end" ? () => this.end() : (...args: unknown[]) => this.#call(method as keyof Calls, args),
    });
  }

  begin(beginning: Beginning): Promise<unknown> {
    return this.#ask((id) => this.#worker.postMessage({ kind: "begin", id, beginning } satisfies ToWorker));
  }

  #call(method: keyof Calls, args: unknown[]): Promise<unknown> {
    // The caller keeps its bytes; the worker gets a copy of its own.
    const own = args.map((arg) => (arg instanceof Uint8Array ? this.#carriers.load(arg) : arg));
    const spent = this.#carriers.takeSpent();
    return this.#ask((id) =>
      this.#worker.postMessage({ kind: "call", id, method, args: own, spent } satisfies ToWorker, [...own.flatMap(handedOver), ...spent]),
    );
  }

  #ask(post: (id: number) => void): Promise<unknown> {
    if (this.#ended) return Promise.reject(failure("ENETDOWN", "the node has left the network"));
    return new Promise((resolve, reject) => {
      this.#last += 1;
      this.#pending.set(this.#last, { resolve, reject });
      post(this.#last);
    });
  }

  /** Takes an answer. */
  answered(id: number, value: unknown, back: ArrayBuffer[]): void {
    this.#carriers.give(back);
    this.#over(id)?.resolve(value instanceof Uint8Array ? this.#carriers.unload(value) : value);
  }

  /** Takes a failure. */
  failed(id: number, error: Error): void {
    this.#over(id)?.reject(error);
  }

  #over(id: number) {
    const pending = this.#pending.get(id);
    this.#pending.delete(id);
    return pending;
  }

  /** Ends the worker, and all that waits for it. */
  async end(why = failure("ENETDOWN", "the node has left the network")): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    this.#worker.terminate();
    for (const { reject } of this.#pending.values()) reject(why);
    this.#pending.clear();
  }
}
