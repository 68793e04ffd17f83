// Members' pages where a public server shows them: over TLS, each at a name below a wildcard.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { X509Certificate, createHash } from "node:crypto";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { after, before, test } from "node:test";

import { LIMIT, Lab, freePort } from "./lab.mjs";

const SITE = fileURLToPath(new URL("../site", import.meta.url));
const place = mkdtempSync(join(tmpdir(), "unisockets-frames-"));
let lab;
let tls;
before(async () => {
  const [certificate, key] = [join(place, "cert.pem"), join(place, "key.pem")];
  const names = "subjectAltName=DNS:signal.test,DNS:*.members.signal.test,DNS:*.others.test,DNS:localhost";
  execFileSync("openssl", [
    "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc", "-days", "2", "-subj", "/CN=signal.test",
    "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", key, "-out", certificate,
  ], { stdio: "ignore" });
  process.env.SSL_CERT_FILE = certificate;
  // The names are of no domain, and the certificate is of no authority that the browser knows.
  const spki = new X509Certificate(readFileSync(certificate)).publicKey.export({ type: "spki", format: "der" });
  const trusted = createHash("sha256").update(spki).digest("base64");
  const args = ["--no-sandbox", "--host-resolver-rules=MAP *.test 127.0.0.1", `--ignore-certificate-errors-spki-list=${trusted}`];
  lab = await Lab.open({ args });
  tls = ["--tls-cert", certificate, "--tls-key", key, "--host", "signal.test", "--host", "localhost", "--page", SITE];
}, { timeout: LIMIT });
after(async () => {
  await lab?.close();
  rmSync(place, { recursive: true, force: true });
});

/** Starts a server whose members' pages are below `wildcard`, and a member; returns the page that asks for the member's. */
async function browse(wildcard) {
  const port = await freePort();
  const origin = `https://*.${wildcard}:${port}`;
  const server = lab.run("signal", "serve", "--listen", `127.0.0.1:${port}`, ...tls, "--frame-origin", origin);
  await server.line(/^wss:/);
  const member = lab.run("serve", "--signal", `wss://localhost:${port}`, "--network", "home", "--name", "library", "80", SITE);
  await member.line(/library/);
  const page = await (await lab.browser.newContext()).newPage();
  page.setDefaultTimeout(LIMIT);
  await page.goto(`https://signal.test:${port}/?network=home&name=reader`);
  await page.locator("#self-ipv4").filter({ hasText: /^10\.80\./ }).waitFor();
  await page.locator("#address").fill("http://library/");
  await page.locator("#browse button").click();
  const end = async () => {
    await page.context().close();
    for (const program of [member, server]) await program.kill();
  };
  return { page, port, end };
}

test("a member's page at a name below the wildcard, over TLS", { timeout: LIMIT }, async () => {
  const { page, port, end } = await browse("members.signal.test");
  await page.frameLocator("#view").frameLocator("iframe").getByText("This tab is not on a network yet.").waitFor();
  const [, frame, view] = page.frames().map((frame) => new URL(frame.url()));
  assert.match(frame.origin, new RegExp(`^https://[0-9a-f]{40}\\.members\\.signal\\.test:${port}$`));
  assert.equal(view.origin, frame.origin);
  await end();
});

test("where the browser gives the wildcard's names no service worker, their pages are shown without scripts", { timeout: LIMIT }, async () => {
  // Private windows, as this context is one, keep service workers from frames of another site.
  const { page, end } = await browse("others.test");
  await page.locator("#view-note").filter({ hasText: "no service worker here" }).waitFor();
  await page.frameLocator("#view").getByText("This tab is not on a network yet.").waitFor();
  await end();
});
