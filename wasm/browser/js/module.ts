import { failure, shown } from "./errors.js";

/** Where the WebAssembly module may come from. */
export type ModuleSource = BufferSource | WebAssembly.Module | URL | string;

let own: Promise<WebAssembly.Module> | undefined;

/** Compiles the module: once, if it is the one beside this file. */
export function compiled(source?: ModuleSource): Promise<WebAssembly.Module> {
  if (source !== undefined) return compile(source);
  own ??= compile(new URL("../core/core_bg.wasm", import.meta.url)).catch((error: unknown) => {
    own = undefined;
    throw error;
  });
  return own;
}

async function compile(source: ModuleSource): Promise<WebAssembly.Module> {
  try {
    return await loaded(source);
  } catch (error) {
    const where = typeof source === "string" || source instanceof URL ? ` from ${shown(String(source))}` : "";
    throw failure("ENOENT", `the WebAssembly module cannot be loaded${where}: ${(error as Error).message}`);
  }
}

async function loaded(source: ModuleSource): Promise<WebAssembly.Module> {
  if (source instanceof WebAssembly.Module) return source;
  if (typeof source !== "string" && !(source instanceof URL)) return WebAssembly.compile(source);
  const url = new URL(source, globalThis.location?.href);
  // Node.js fetches no files.
  if (url.protocol === "file:") return WebAssembly.compile(await read(url));
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
  // Some servers do not know the type of WebAssembly; compiling as it comes insists on it.
  const typed = response.headers.get("content-type")?.startsWith("application/wasm") ?? false;
  return typed ? WebAssembly.compileStreaming(response) : WebAssembly.compile(await response.arrayBuffer());
}

async function read(url: URL): Promise<BufferSource> {
  // The name is not a literal: bundlers for browsers look for those.
  const files = "node:fs/promises";
  const { readFile } = (await import(files)) as { readFile(url: URL): Promise<Uint8Array<ArrayBuffer>> };
  return readFile(url);
}
