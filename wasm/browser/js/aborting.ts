// What signals of abortion end.

import { type NetworkError } from "./errors.js";

/** What waits is told with this that it has been aborted, as in Node.js. */
export function aborted(signal: AbortSignal): NetworkError {
  return Object.assign(new Error("The operation was aborted", { cause: signal.reason }), { name: "AbortError", code: "ABORT_ERR" });
}

/** Waits for something, but no longer than until it is aborted. */
export async function aborting<T>(work: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (!signal) return work;
  let abort: (() => void) | undefined;
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason as Error);
    if (signal.aborted) abort();
    else signal.addEventListener("abort", abort);
  });
  try {
    return await Promise.race([work, aborted]);
  } finally {
    if (abort) signal.removeEventListener("abort", abort);
    work.catch(() => undefined);
  }
}

/** Stops something that emits `close` when it is over, as soon as a signal is aborted; that may have been before. */
export function heed(signal: AbortSignal, what: { once(event: string, listener: () => void): unknown }, stop: () => void): void {
  if (signal.aborted) return stop();
  signal.addEventListener("abort", stop);
  what.once("close", () => signal.removeEventListener("abort", stop));
}
