//! The one task that owns the sending side of a link's channels.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;
use tracing::trace;
use webrtc::peer_connection::PeerConnection;

use super::{Channels, Shared};
use crate::budget::Budget;
use crate::frame::Probe;
use crate::lanes::Lane;
use crate::liveness::Action;
use crate::outgoing::Waits;
use crate::{Event, Lost};

/// How often outstanding bytes are looked at while there are some.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// The same while something waits for the budget, should the library's news be lost.
const NEWS_INTERVAL: Duration = Duration::from_millis(50);
/// Bytes that a relay's kernel takes in one burst: coturn asks for buffers of 64 KiB, which the kernel doubles.
const RELAY_BURST_MAX: usize = 64 * 1024;

/// Drains the queue into the channels; also probes, and notices stalls.
pub(super) async fn run(shared: Arc<Shared>, channels: Channels, connection: Arc<dyn PeerConnection>) {
    while shared.open_lanes.load(Ordering::Acquire) < Lane::ALL.len() {
        shared.filled.notified().await;
    }
    shared.find_route(&*connection).await;
    // Peers are taken to have the buffers that this machine has, relays to have the usual small ones.
    let burst_max = if shared.is_relayed() { RELAY_BURST_MAX } else { crate::sockets::burst_max() };
    shared.outgoing().budget = Budget::with_burst_max(burst_max);
    loop {
        let next = shared.outgoing().pop();
        if let Some((lane, message)) = next {
            shared.activity.note();
            if channels[lane.index()].send(message).await.is_err() {
                return shared.lose(Lost::Transport);
            }
            if shared.outgoing().lanes.take_writable() {
                shared.sink.event(Event::Writable);
            }
            continue;
        }
        if !rest(&shared, &channels).await {
            return;
        }
    }
}

/// Asks the library what is outstanding; returns the bytes of all lanes.
async fn refresh(shared: &Shared, channels: &Channels) -> usize {
    shared.outgoing().budget.begin_refresh();
    for lane in Lane::ALL {
        let stale = shared.outgoing().budget.outstanding_in(lane) > 0;
        if stale {
            let bytes = channels[lane.index()].outstanding_bytes().await.unwrap_or(0);
            shared.outgoing().budget.refresh(lane, bytes);
        }
    }
    let now = shared.now_us();
    let mut outgoing = shared.outgoing();
    outgoing.budget.handle_progress(now);
    trace!(limit = outgoing.budget.limit(), "budget");
    let total = outgoing.budget.outstanding();
    if total > 0 {
        shared.activity.note();
    }
    total
}

/// Tells the link's memory what is outstanding. Datagrams that are lost are given up, which is no progress.
fn note_outstanding(shared: &Shared, now: u64, total: usize) {
    let lanes = [Lane::Control, Lane::Interactive, Lane::Bulk];
    let outstanding = lanes.map(|lane| (lane, shared.outgoing().budget.outstanding_in(lane)));
    let mut liveness = shared.liveness();
    liveness.outstanding(now, total);
    for (lane, bytes) in outstanding {
        liveness.outstanding_in(now, lane, bytes);
    }
}

/// Has the library tell when half of what is outstanding has been acknowledged.
async fn ask_for_news(shared: &Shared, channels: &Channels) {
    for lane in Lane::ALL {
        let outstanding = shared.outgoing().budget.outstanding_in(lane);
        if outstanding > 0 {
            let half = u32::try_from(outstanding / 2).unwrap_or(u32::MAX);
            let _ = channels[lane.index()].set_buffered_amount_low_threshold(half).await;
        }
    }
}

/// Waits until there may be something to do; returns whether the link goes on.
async fn rest(shared: &Shared, channels: &Channels) -> bool {
    let mut total = refresh(shared, channels).await;
    let mut waits = shared.outgoing().waits();
    if waits == Waits::HeldBack {
        ask_for_news(shared, channels).await;
        // What was acknowledged before the library knew of the wish would be no news.
        total = refresh(shared, channels).await;
        waits = shared.outgoing().waits();
    }
    let now = shared.now_us();
    note_outstanding(shared, now, total);
    if shared.outgoing().lanes.take_writable() {
        shared.sink.event(Event::Writable);
    }
    let action = shared.liveness().poll(now);
    match action {
        Some(Action::Lost) => {
            shared.lose(Lost::Silent);
            return false;
        }
        Some(Action::Ping(number)) => {
            shared.outgoing().probe(Probe::Ping(number));
            return true;
        }
        None => {}
    }
    let wanted = shared.outgoing().budget.wants_round_trip(now);
    let measure = shared.liveness().measure(now);
    if wanted || measure.is_some() {
        shared.outgoing().probe(Probe::Ping(now));
        return true;
    }
    if waits != Waits::Ready {
        let due = Duration::from_micros(shared.liveness().poll_timeout_us().saturating_sub(now));
        let pause = match waits {
            Waits::HeldBack => due.min(NEWS_INTERVAL),
            _ if total > 0 => due.min(PROGRESS_INTERVAL),
            _ => due,
        };
        let _ = timeout(pause, shared.filled.notified()).await;
    }
    !shared.is_over() || !shared.outgoing().lanes.is_empty()
}
