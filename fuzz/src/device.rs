//! What stands between links and a kernel's device.
#![allow(dead_code, reason = "only what reads is driven here")]

#[path = "../../src/device/header.rs"]
pub(crate) mod header;
#[path = "../../src/device/segments.rs"]
pub(crate) mod segments;
