// What is used of Node.js's streams and events, as 'readable-stream' and 'events' bring them to browsers.

declare module "events" {
  export class EventEmitter {
    on(event: string, listener: (...args: any[]) => void): this;
    once(event: string, listener: (...args: any[]) => void): this;
    off(event: string, listener: (...args: any[]) => void): this;
    emit(event: string, ...args: unknown[]): boolean;
    listenerCount(event: string): number;
    removeAllListeners(event?: string): this;
  }
}

declare module "readable-stream" {
  import { EventEmitter } from "events";

  export interface DuplexOptions {
    allowHalfOpen?: boolean;
    emitClose?: boolean;
    autoDestroy?: boolean;
  }

  export class Duplex extends EventEmitter implements AsyncIterable<Uint8Array> {
    constructor(options?: DuplexOptions);
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
    [Symbol.asyncIterator](): AsyncIterator<Uint8Array>;
    _read(size: number): void;
    _write(chunk: Uint8Array, encoding: string, done: (error?: Error | null) => void): void;
    _final(done: (error?: Error | null) => void): void;
    _destroy(error: Error | null, done: (error?: Error | null) => void): void;
    _undestroy(): void;
  }
}
