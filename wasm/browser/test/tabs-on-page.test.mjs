// The same with the stack on the page, as in browsers that hand no channels to workers.

process.env.UNISOCKETS_STACK = "page";
await import("./tabs.test.mjs");
await import("./http.test.mjs");
