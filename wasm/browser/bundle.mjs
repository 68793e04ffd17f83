// Puts the streams that `./net` and `./dgram` are made of into the package, as `npm run build` does after TypeScript.

import { rm } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const at = (path) => fileURLToPath(new URL(path, import.meta.url));

await build({
  entryPoints: [at("dist/net.js"), at("dist/dgram.js")],
  bundle: true,
  splitting: true,
  format: "esm",
  minifySyntax: true,
  logLevel: "warning",
  chunkNames: "streams-[hash]",
  outdir: at("dist"),
  allowOverwrite: true,
  plugins: [
    { name: "process", setup: (bundle) => bundle.onResolve({ filter: /^process\/$/ }, () => ({ path: at("dist/process.js") })) },
  ],
});

// It is in the others now; its types stay.
await rm(at("dist/streams.js"));
