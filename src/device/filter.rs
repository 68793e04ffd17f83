//! What a machine that joins with everything on it takes from the network: what it asked for, and what is published.
//!
//! What does not pass goes to the node's own stack, where nobody listens: it answers as any machine does whose ports are
//! closed, and to echo requests.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Duration;

use unisockets_stack::Instant;

use super::header::{Header, ICMP, ICMPV6, TCP, UDP};

/// A protocol and a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Open {
    /// A port of TCP.
    Tcp(u16),
    /// A port of UDP.
    Udp(u16),
}

/// Who was asked, of one generation.
const ASKED_MAX: usize = 16_384;
/// An answer may come for one to two of these.
const GENERATION: Duration = Duration::from_secs(60);

/// One datagram exchange: our port, the other address and port.
type Exchange = (u16, IpAddr, u16);

/// Decides what passes to the machine.
#[derive(Debug)]
pub(crate) struct Filter {
    open: HashSet<Open>,
    asked: HashSet<Exchange>,
    asked_before: HashSet<Exchange>,
    since: Instant,
}

impl Filter {
    pub(crate) fn new(now: Instant, open: impl IntoIterator<Item = Open>) -> Filter {
        let open = open.into_iter().collect();
        Filter { open, asked: HashSet::new(), asked_before: HashSet::new(), since: now }
    }

    /// Notes a packet of the machine: the answer to it may come.
    pub(crate) fn note(&mut self, now: Instant, header: &Header<'_>) {
        if header.protocol != UDP {
            return;
        }
        let Some((source, destination)) = header.ports() else {
            return;
        };
        self.age(now);
        if self.asked.len() >= ASKED_MAX {
            self.asked_before = std::mem::take(&mut self.asked);
            self.since = now;
        }
        self.asked.insert((source, header.destination, destination));
    }

    fn age(&mut self, now: Instant) {
        let age = now.saturating_since(self.since);
        if age >= GENERATION {
            let last = std::mem::take(&mut self.asked);
            self.asked_before = if age < 2 * GENERATION { last } else { HashSet::new() };
            self.since = now;
        }
    }

    /// Whether a packet from the network passes.
    pub(crate) fn passes(&mut self, now: Instant, header: &Header<'_>) -> bool {
        if header.fragment_offset > 0 {
            // Nothing comes of it where the first one did not pass. One that would lie over the ports and flags of the
            // first one does not (RFC 3128).
            return header.protocol != TCP || header.fragment_offset >= 16;
        }
        match header.protocol {
            TCP => match (header.tcp_flags(), header.ports()) {
                // All that belongs to a connection has ACK or RST set; the kernel knows its connections.
                (Some(flags), Some((_, port))) => !flags.opens() || self.open.contains(&Open::Tcp(port)),
                _ => false,
            },
            UDP => {
                let Some((source, destination)) = header.ports() else {
                    return false;
                };
                self.age(now);
                let exchange = (destination, header.source, source);
                self.open.contains(&Open::Udp(destination))
                    || self.asked.contains(&exchange)
                    || self.asked_before.contains(&exchange)
            }
            // Echo replies and errors; the kernel looks whether they answer anything.
            ICMP => matches!(header.payload.first(), Some(0 | 3 | 11 | 12)),
            ICMPV6 => matches!(header.payload.first(), Some(1..=4 | 129)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, ports: (u16, u16), flags: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 80, 0, 2, 10, 80, 0, 1];
        packet.extend(ports.0.to_be_bytes());
        packet.extend(ports.1.to_be_bytes());
        packet.extend([0; 8]);
        packet.extend([0x50, flags, 0, 0, 0, 0, 0, 0]);
        packet
    }

    fn passes(filter: &mut Filter, at: u64, packet: &[u8]) -> bool {
        filter.passes(Instant::from_micros(at * 1_000_000), &Header::parse(packet).unwrap())
    }

    #[test]
    fn a_connection_opens_to_published_ports_only_and_what_belongs_to_one_passes() {
        let mut filter = Filter::new(Instant::from_micros(0), [Open::Tcp(80)]);
        assert!(passes(&mut filter, 1, &packet(TCP, (5_000, 80), 0x02)));
        assert!(!passes(&mut filter, 1, &packet(TCP, (5_000, 22), 0x02)));
        assert!(!passes(&mut filter, 1, &packet(TCP, (5_000, 22), 0x03)), "SYN and FIN open too");
        assert!(!passes(&mut filter, 1, &packet(TCP, (5_000, 22), 0x00)));
        assert!(passes(&mut filter, 1, &packet(TCP, (22, 40_000), 0x12)));
        assert!(passes(&mut filter, 1, &packet(TCP, (22, 40_000), 0x10)));
        assert!(!passes(&mut filter, 1, &packet(UDP, (5_000, 80), 0)), "the same port of UDP is another one");
    }

    #[test]
    fn an_answer_to_a_datagram_passes_for_a_while_and_only_from_whom_was_asked() {
        let mut filter = Filter::new(Instant::from_micros(0), []);
        let mut question = packet(UDP, (4_000, 53), 0);
        question.copy_within(12..16, 16);
        question[12..16].copy_from_slice(&[10, 80, 0, 1]);
        question[16..20].copy_from_slice(&[10, 80, 0, 2]);
        assert!(!passes(&mut filter, 1, &packet(UDP, (53, 4_000), 0)));
        filter.note(Instant::from_micros(1_000_000), &Header::parse(&question).unwrap());
        assert!(passes(&mut filter, 2, &packet(UDP, (53, 4_000), 0)));
        assert!(!passes(&mut filter, 2, &packet(UDP, (54, 4_000), 0)));
        assert!(passes(&mut filter, 60, &packet(UDP, (53, 4_000), 0)));
        assert!(!passes(&mut filter, 200, &packet(UDP, (53, 4_000), 0)));
    }

    #[test]
    fn a_fragment_over_the_flags_does_not_pass_and_echo_requests_are_not_the_machines() {
        let mut filter = Filter::new(Instant::from_micros(0), [Open::Tcp(80)]);
        let mut fragment = packet(TCP, (1, 80), 0x02);
        fragment[7] = 1;
        assert!(!passes(&mut filter, 1, &fragment));
        fragment[7] = 10;
        assert!(passes(&mut filter, 1, &fragment));
        let mut echo = packet(ICMP, (0, 0), 0);
        echo[20] = 8;
        assert!(!passes(&mut filter, 1, &echo));
        echo[20] = 0;
        assert!(passes(&mut filter, 1, &echo));
    }
}
