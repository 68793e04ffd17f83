// The packages that `streams.ts` has types of its own for.

declare module "buffer" {
  export const Buffer: { from(memory: ArrayBufferLike, at: number, length: number): Uint8Array };
}

declare module "events" {
  export const EventEmitter: new () => any;
}

declare module "readable-stream" {
  export const Duplex: new (options?: object) => any;
}
