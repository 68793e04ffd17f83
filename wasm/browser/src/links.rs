//! What pages report about their peer connections, and what these have to do.

use std::sync::Arc;

use unisockets::core::LinkId;
use unisockets_link::browser::{BrowserLink, Task};
use unisockets_link::signal::CANDIDATES_MAX;
use unisockets_link::{Event, Lane, Lost, Route, Signal};
use unisockets_stack::Instant;
use wasm_bindgen::prelude::*;

use crate::{Core, at, refuse};

/// A link whose connection is the page's.
pub(crate) struct Link {
    link: Arc<BrowserLink>,
    /// Candidates that the peer was told.
    told: usize,
}

impl Link {
    pub(crate) fn new(now: Instant) -> Link {
        Link { link: Arc::new(BrowserLink::new(now.as_micros())), told: 0 }
    }

    pub(crate) fn shared(&self) -> Arc<BrowserLink> {
        Arc::clone(&self.link)
    }

    pub(crate) fn poll_timeout_us(&self) -> Option<u64> {
        self.link.poll_timeout_us()
    }
}

fn lane_of(lane: u8) -> Result<Lane, JsValue> {
    Lane::ALL.get(usize::from(lane)).copied().ok_or_else(|| refuse("a link has lanes 0 to 3"))
}

#[wasm_bindgen]
impl Core {
    /// Takes a description or a candidate of this end's connection.
    #[wasm_bindgen(js_name = linkSignal)]
    pub fn link_signal(&mut self, now_us: f64, link: f64, signal: &str) -> Result<(), JsValue> {
        let (now, id) = (at(now_us), LinkId(link as u64));
        let signal: Signal = serde_json::from_str(signal).map_err(|error| refuse(&error.to_string()))?;
        let Some(entry) = self.links.get_mut(&id) else {
            return Ok(());
        };
        if matches!(signal, Signal::Candidate { .. }) {
            entry.told += 1;
            if entry.told > CANDIDATES_MAX {
                return Ok(());
            }
        }
        self.node.link_signal(now, id, &signal);
        self.settle(now);
        Ok(())
    }

    /// Takes the news that a channel is open.
    #[wasm_bindgen(js_name = linkOpen)]
    pub fn link_open(&mut self, now_us: f64, link: f64, lane: u8) -> Result<(), JsValue> {
        let (now, id, lane) = (at(now_us), LinkId(link as u64), lane_of(lane)?);
        let Some(entry) = self.links.get(&id) else {
            return Ok(());
        };
        if entry.link.handle_open(now.as_micros(), lane).is_some() {
            // The first round trip is measured at once.
            entry.link.handle_timeout(now.as_micros());
            self.node.link_opened(now, id);
        }
        self.settle(now);
        Ok(())
    }

    /// Takes a message of a channel.
    #[wasm_bindgen(js_name = linkMessage)]
    pub fn link_message(&mut self, now_us: f64, link: f64, lane: u8, message: &[u8]) -> Result<(), JsValue> {
        let (now, id, lane) = (at(now_us), LinkId(link as u64), lane_of(lane)?);
        let Some(entry) = self.links.get(&id) else {
            return Ok(());
        };
        match entry.link.handle_message(now.as_micros(), lane, message) {
            Some(Event::Packets(message)) => self.node.handle_message(now, id, message),
            Some(Event::Control(message)) => self.node.handle_control(now, id, message),
            Some(Event::RoundTrip) => self.node.link_measured(id),
            _ => {}
        }
        self.settle(now);
        Ok(())
    }

    /// Takes the news that a channel has less buffered than was watched for.
    #[wasm_bindgen(js_name = linkDrained)]
    pub fn link_drained(&mut self, now_us: f64, link: f64) {
        let now = at(now_us);
        self.look_at(now, LinkId(link as u64));
        self.settle(now);
    }

    /// Takes the end of a connection.
    #[wasm_bindgen(js_name = linkLost)]
    pub fn link_lost(&mut self, now_us: f64, link: f64, was_open: bool) {
        let (now, id) = (at(now_us), LinkId(link as u64));
        if self.links.get(&id).is_some_and(|entry| entry.link.handle_closed()) {
            self.node.link_lost(now, id, if was_open { Lost::Transport } else { Lost::NoPath });
        }
        self.settle(now);
    }

    /// Takes how a link's packets travel.
    #[wasm_bindgen(js_name = linkRoute)]
    pub fn link_route(&mut self, link: f64, relayed: bool) {
        if let Some(entry) = self.links.get(&LinkId(link as u64)) {
            entry.link.set_route(if relayed { Route::Relayed } else { Route::Direct });
        }
    }
}

impl Core {
    /// Asks the page what a link's channels have buffered.
    fn look_at(&self, now: Instant, id: LinkId) {
        let Some(entry) = self.links.get(&id) else {
            return;
        };
        let told = self.host.buffered(id.0 as f64);
        let mut buffered = [0; 4];
        for (bytes, told) in buffered.iter_mut().zip(told) {
            *bytes = told as usize;
        }
        entry.link.handle_buffered(now.as_micros(), buffered);
    }

    /// Lets time pass for the links.
    pub(crate) fn let_links_rest(&mut self, now: Instant) {
        let due: Vec<LinkId> = self
            .links
            .iter()
            .filter(|(_, entry)| entry.poll_timeout_us().is_some_and(|due| due <= now.as_micros()))
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            if self.links.get(&id).is_some_and(|entry| entry.link.wants_buffered(now.as_micros())) {
                self.look_at(now, id);
            }
            let lost = self.links.get(&id).and_then(|entry| entry.link.handle_timeout(now.as_micros()));
            if let Some(lost) = lost {
                self.node.link_lost(now, id, lost);
            }
        }
    }

    /// Has the page do what links want; returns whether something followed from it.
    pub(crate) fn serve_links(&mut self, now: Instant) -> bool {
        let (mut busy, mut closed, mut lost) = (false, Vec::new(), Vec::new());
        for (id, entry) in &self.links {
            let name = id.0 as f64;
            while let Some(task) = entry.link.poll_task(now.as_micros()) {
                match task {
                    Task::Negotiate(signal) => {
                        self.host.negotiate(name, &serde_json::to_string(&signal).unwrap_or_default());
                    }
                    Task::Send(lane, message) => {
                        if !self.host.send_message(name, lane.index() as u8, &message) && entry.link.handle_closed() {
                            lost.push(*id);
                        }
                    }
                    Task::Look => self.look_at(now, *id),
                    Task::Watch(lane, bytes) => {
                        self.host.watch(name, lane.index() as u8, u32::try_from(bytes).unwrap_or(u32::MAX));
                    }
                    Task::Close => {
                        self.host.close_link(name);
                        closed.push(*id);
                    }
                }
            }
            if entry.link.poll_writable().is_some() {
                self.node.link_writable(*id);
                busy = true;
            }
        }
        for id in lost {
            self.node.link_lost(now, id, Lost::Transport);
            busy = true;
        }
        for id in closed {
            self.links.remove(&id);
        }
        busy
    }
}
