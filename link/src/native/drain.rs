//! The one task that owns the sending side of a link's channels.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use webrtc::data_channel::DataChannel;
use webrtc::peer_connection::{PeerConnection, RTCIceCandidateType, RTCStatsReportEntry, StatsSelector};

use super::{OUTSTANDING_MAX, Shared};
use crate::frame::Probe;
use crate::lanes::Lane;
use crate::liveness::Action;
use crate::{Event, Lost};

/// How often outstanding bytes are looked at while there are some.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The bytes below each lane that the transport has not had acknowledged, as far as is known.
#[derive(Default)]
struct Outstanding([usize; 4]);

impl Outstanding {
    fn limit(lane: Lane) -> usize {
        match lane {
            Lane::Datagram => OUTSTANDING_MAX / 4,
            Lane::Control | Lane::Interactive | Lane::Bulk => OUTSTANDING_MAX,
        }
    }

    fn may_send(&self, lane: Lane) -> bool {
        self.0[lane.index()] < Self::limit(lane)
    }

    async fn refresh(&mut self, channels: &[Arc<dyn DataChannel>]) -> usize {
        for (known, channel) in self.0.iter_mut().zip(channels) {
            if *known > 0 {
                *known = channel.outstanding_bytes().await.unwrap_or(0);
            }
        }
        self.0.iter().sum()
    }
}

/// Drains the queue into the channels; also probes, and notices stalls.
pub(super) async fn run(shared: Arc<Shared>, channels: Vec<Arc<dyn DataChannel>>, connection: Arc<dyn PeerConnection>) {
    let mut outstanding = Outstanding::default();
    let mut routed = false;
    loop {
        if shared.open_lanes.load(Ordering::Acquire) < Lane::ALL.len() {
            shared.filled.notified().await;
            continue;
        }
        if !routed {
            routed = true;
            shared.route.store(find_route(&*connection).await, Ordering::Relaxed);
        }
        let next = shared.lanes().pop(|lane| outstanding.may_send(lane));
        if let Some((lane, message)) = next {
            outstanding.0[lane.index()] += message.len();
            if channels[lane.index()].send(message).await.is_err() {
                return shared.lose(Lost::Transport);
            }
            if shared.lanes().take_writable() {
                shared.sink.event(Event::Writable);
            }
            continue;
        }
        if !rest(&shared, &channels, &mut outstanding).await {
            return;
        }
    }
}

/// Waits until there may be something to do; returns whether the link goes on.
async fn rest(shared: &Shared, channels: &[Arc<dyn DataChannel>], outstanding: &mut Outstanding) -> bool {
    let total = outstanding.refresh(channels).await;
    let now = shared.now_us();
    shared.liveness().outstanding(now, total);
    if shared.lanes().take_writable() {
        shared.sink.event(Event::Writable);
    }
    let blocked = Lane::ALL.into_iter().find(|lane| !outstanding.may_send(*lane) && shared.lanes().waits(*lane));
    let blocked = blocked.map(|lane| (lane, &channels[lane.index()]));
    let action = shared.liveness().poll(now);
    match action {
        Some(Action::Lost) => {
            shared.lose(Lost::Silent);
            return false;
        }
        Some(Action::Ping(number)) => {
            let _ = shared.lanes().push(Lane::Datagram, &Probe::Ping(number).emit());
            return true;
        }
        None => {}
    }
    let due = Duration::from_micros(shared.liveness().poll_timeout_us().saturating_sub(now));
    let pause = if total > 0 { due.min(PROGRESS_INTERVAL) } else { due };
    let capacity = async {
        match blocked {
            // Only datagrams are held below the library's own limit, and they are soon gone.
            Some((Lane::Datagram, _)) => tokio::time::sleep(Duration::from_millis(1)).await,
            Some((_, channel)) => drop(channel.writable().await),
            None => std::future::pending().await,
        }
    };
    if blocked.is_none() && shared.lanes().is_empty() || blocked.is_some() {
        tokio::select! {
            () = shared.filled.notified() => {}
            () = capacity => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
    !shared.is_over() || !shared.lanes().is_empty()
}

/// Finds out from the candidate pair in use whether a relay stands between: 1 direct, 2 relayed.
async fn find_route(connection: &dyn PeerConnection) -> u8 {
    let report = connection.get_stats(Instant::now(), StatsSelector::None).await;
    let relay = |id: &str| match report.get(id) {
        Some(RTCStatsReportEntry::LocalCandidate(c) | RTCStatsReportEntry::RemoteCandidate(c)) => {
            c.candidate_type == RTCIceCandidateType::Relay
        }
        _ => false,
    };
    let used = report.candidate_pairs().max_by_key(|pair| (pair.nominated, pair.packets_sent));
    match used {
        Some(pair) if relay(&pair.local_candidate_id) || relay(&pair.remote_candidate_id) => 2,
        _ => 1,
    }
}
