// The packages that `streams.ts` has types of its own for.

declare module "events" {
  export const EventEmitter: new () => any;
}

declare module "readable-stream" {
  export const Duplex: new (options?: object) => any;
}
