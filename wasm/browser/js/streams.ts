// Node.js's events and streams, as far as they are used, from the packages that bring them to browsers. The types are this
// file's own: whoever has those of Node.js keeps them.

import { Buffer } from "buffer";
import { EventEmitter as Emitter } from "events";
import { Duplex as Stream } from "readable-stream";

/** Returns bytes as Node.js hands them out, without copying them: with `toString` and the like. */
export function bufferOf(bytes: Uint8Array): Uint8Array {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** What emits events: `EventEmitter` of `node:events`, as far as it is used here. */
export interface EventEmitter {
  on(event: string, listener: (...args: any[]) => void): this;
  once(event: string, listener: (...args: any[]) => void): this;
  off(event: string, listener: (...args: any[]) => void): this;
  emit(event: string, ...args: unknown[]): boolean;
  listenerCount(event: string): number;
  removeAllListeners(event?: string): this;
}

export const EventEmitter: new () => EventEmitter = Emitter;

export interface DuplexOptions {
  allowHalfOpen?: boolean;
  emitClose?: boolean;
  autoDestroy?: boolean;
}

/** A stream of both directions: `Duplex` of `node:stream`, as far as it is used here. */
export interface Duplex extends EventEmitter, AsyncIterable<Uint8Array> {
  readonly destroyed: boolean;
  readonly writableEnded: boolean;
  readonly writableFinished: boolean;
  readonly readableEnded: boolean;
  push(chunk: Uint8Array | null): boolean;
  read(size?: number): Uint8Array | string | null;
  write(chunk: Uint8Array | string, done?: (error?: Error | null) => void): boolean;
  write(chunk: Uint8Array | string, encoding?: string, done?: (error?: Error | null) => void): boolean;
  end(done?: () => void): this;
  end(chunk: Uint8Array | string, encoding?: string, done?: () => void): this;
  destroy(error?: Error): this;
  pause(): this;
  resume(): this;
  setEncoding(encoding: string): this;
  pipe<Target>(target: Target, options?: { end?: boolean }): Target;
  iterator(options?: { destroyOnReturn?: boolean }): AsyncIterableIterator<Uint8Array>;
  [Symbol.asyncIterator](): AsyncIterator<Uint8Array>;
  _read(size: number): void;
  _write(chunk: Uint8Array, encoding: string, done: (error?: Error | null) => void): void;
  _final(done: (error?: Error | null) => void): void;
  _destroy(error: Error | null, done: (error?: Error | null) => void): void;
  _undestroy(): void;
}

export const Duplex: new (options?: DuplexOptions) => Duplex = Stream;
