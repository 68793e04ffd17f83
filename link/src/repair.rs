//! Repair of single losses below the transport: parity of a few datagrams, so that one lost among them need not be sent
//! again. No I/O.
//!
//! SCTP takes every lost datagram for congestion and halves its rate: at 20 ms and 1 % loss, which a radio link has
//! without being full, one megabyte a second is left. Where the receiver reports such losses, the sender adds to every
//! few datagrams one that holds their exclusive or (the idea of RFC 5109 and RFC 8627, section 1.1.1). The receiver
//! holds back what follows a gap for the moment that the repair takes, because SCTP would take it for a loss as well.
//! Losses in a row, as a full queue makes them, cannot be repaired so: they stay visible, and SCTP yields to them.
//!
//! The datagrams themselves are not changed: DTLS numbers its records in the clear (RFC 6347, section 4.1), and it
//! proves what was put together again like anything else. Parity and reports have first bytes that no protocol of
//! WebRTC has (RFC 7983), and are sent only to peers that have said they understand them.

use std::collections::VecDeque;

/// First byte of a parity datagram.
const PARITY: u8 = 0xc5;
/// First byte of a report.
const REPORT: u8 = 0xc6;
/// Bytes of a parity datagram before the exclusive or itself.
const PARITY_HEADER_LEN: usize = 12;
/// Bytes of a report.
const REPORT_LEN: usize = 9;
/// Content type of protected application data in DTLS 1.2 (RFC 6347, section 4.1).
const APPLICATION_DATA: u8 = 23;
/// Bytes of the header of a DTLS record.
const RECORD_HEADER_LEN: usize = 13;
/// Fewest and most datagrams that share one parity datagram.
const GROUP_MIN: u64 = 4;
/// See [`GROUP_MIN`].
const GROUP_MAX: u64 = 32;
/// The share of losses times the datagrams of a group that is aimed at: of a group so few are lost that two seldom are.
const LOSS_PER_GROUP: f64 = 0.04;
/// Share of single losses from which on parity is sent, and below which it is not any more.
const LOSS_MIN: f64 = 0.0005;
/// Weight of what was reported before against a new report.
const MEMORY: f64 = 0.9;
/// How long a group waits for its next datagram, in microseconds: its last ones must not be without repair.
const GROUP_WAIT_US: u64 = 5_000;
/// How long what follows a gap is held back at most, in microseconds: a group's time and a little jitter.
const HOLD_US: u64 = 20_000;
/// How long datagrams are held back and kept after the last parity came, in microseconds.
const ACTIVE_US: u64 = 5_000_000;
/// Time between reports of losses, in microseconds, and between those that only say that all is well.
const REPORT_US: u64 = 100_000;
/// See [`REPORT_US`].
const ALL_WELL_US: u64 = 1_000_000;
/// Datagrams kept to repair another one of their group, and most that are held back.
const KEPT_MAX: usize = 2 * GROUP_MAX as usize;
/// Longest datagram that is repaired, in bytes: what fits the smallest MTU of IPv6.
const DATAGRAM_LEN_MAX: usize = 1_280;
/// Datagrams in a row whose arrival is remembered, to count what is lost and not what is late.
const SEEN: u64 = 128;

/// Returns the number of a datagram of protected application data: epoch and sequence number of its first record.
fn number_of(datagram: &[u8]) -> Option<u64> {
    let is_data = datagram.len() >= RECORD_HEADER_LEN
        && datagram.len() <= DATAGRAM_LEN_MAX
        && datagram[0] == APPLICATION_DATA
        && datagram[1] == 0xfe;
    is_data.then(|| u64::from_be_bytes(datagram[3..11].try_into().expect("eight bytes")))
}

/// Whether a datagram belongs to the repair itself.
pub fn is_repair(datagram: &[u8]) -> bool {
    matches!(datagram.first(), Some(&PARITY | &REPORT))
}

/// Adds `bytes` to an exclusive or that is as long as its longest part.
fn add(sum: &mut Vec<u8>, bytes: &[u8]) {
    if sum.len() < bytes.len() {
        sum.resize(bytes.len(), 0);
    }
    for (place, byte) in sum.iter_mut().zip(bytes) {
        *place ^= byte;
    }
}

/// The sending side: makes parity where the peer reports losses.
#[derive(Debug, Default)]
pub struct Protector {
    /// What the peer has reported, older reports counting less.
    received: f64,
    lost_singly: f64,
    group: Group,
    parity: VecDeque<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Group {
    first: u64,
    count: u64,
    began_us: u64,
    lengths: u16,
    sum: Vec<u8>,
}

impl Protector {
    /// Returns how many datagrams share one parity datagram; none while there is nothing to repair.
    fn group_len(&self) -> Option<u64> {
        let loss = self.lost_singly / (self.received + self.lost_singly).max(1.0);
        (loss >= LOSS_MIN).then(|| ((LOSS_PER_GROUP / loss) as u64).clamp(GROUP_MIN, GROUP_MAX))
    }

    /// Notes a datagram that was sent.
    pub fn sent(&mut self, now_us: u64, datagram: &[u8]) {
        let (Some(len), Some(number)) = (self.group_len(), number_of(datagram)) else {
            return;
        };
        if self.group.count > 0 && number != self.group.first + self.group.count {
            self.finish();
        }
        if self.group.count == 0 {
            (self.group.first, self.group.began_us) = (number, now_us);
        }
        self.group.count += 1;
        self.group.lengths ^= datagram.len() as u16;
        add(&mut self.group.sum, datagram);
        if self.group.count >= len {
            self.finish();
        }
    }

    fn finish(&mut self) {
        let group = std::mem::take(&mut self.group);
        // More than a few only wait where nothing leaves at all.
        if group.count == 0 || self.parity.len() >= KEPT_MAX {
            return;
        }
        let mut parity = Vec::with_capacity(PARITY_HEADER_LEN + group.sum.len());
        parity.push(PARITY);
        parity.push(group.count as u8);
        parity.extend_from_slice(&group.first.to_be_bytes());
        parity.extend_from_slice(&group.lengths.to_be_bytes());
        parity.extend_from_slice(&group.sum);
        self.parity.push_back(parity);
    }

    /// Takes in what the peer reports of our datagrams.
    pub fn handle_report(&mut self, datagram: &[u8]) {
        if datagram.len() != REPORT_LEN || datagram[0] != REPORT {
            return;
        }
        let number = |at: usize| f64::from(u32::from_be_bytes(datagram[at..at + 4].try_into().expect("four bytes")));
        self.received = self.received * MEMORY + number(1);
        self.lost_singly = self.lost_singly * MEMORY + number(5);
    }

    /// Returns the next parity datagram to send.
    pub fn poll_parity(&mut self, now_us: u64) -> Option<Vec<u8>> {
        if self.group.count > 0 && now_us >= self.group.began_us + GROUP_WAIT_US {
            self.finish();
        }
        self.parity.pop_front()
    }

    /// Returns when [`Protector::poll_parity`] has something, if nothing else happens.
    pub fn poll_timeout_us(&self) -> Option<u64> {
        match self.parity.is_empty() {
            false => Some(0),
            true => (self.group.count > 0).then(|| self.group.began_us + GROUP_WAIT_US),
        }
    }
}

/// Which of the last datagrams have come, and how many have not.
#[derive(Debug, Default)]
struct Arrivals {
    highest: Option<u64>,
    /// Bit n is set if `highest - n` has come.
    seen: u128,
    received: u32,
    lost_singly: u32,
}

impl Arrivals {
    fn note(&mut self, number: u64) {
        let Some(highest) = self.highest else {
            (self.highest, self.seen, self.received) = (Some(number), u128::MAX, 1);
            return;
        };
        self.received = self.received.saturating_add(1);
        if number <= highest {
            if highest - number < SEEN {
                self.seen |= 1 << (highest - number);
            }
            return;
        }
        let steps = number - highest;
        self.highest = Some(number);
        if steps >= SEEN {
            // A new epoch, or a pause in which nothing at all came: no single losses.
            self.seen = u128::MAX;
            return;
        }
        for _ in 0..steps {
            // The datagram that leaves the memory: was it lost, and both its neighbours not?
            let oldest = self.seen >> (SEEN - 3) & 0b111;
            self.lost_singly += u32::from(oldest == 0b101);
            self.seen <<= 1;
        }
        self.seen |= 1;
    }
}

/// The receiving side: holds back what follows a gap, and fills the gap.
#[derive(Debug, Default)]
pub struct Repairer {
    arrivals: Arrivals,
    reported_us: u64,
    /// Until when parity may come.
    active_until_us: u64,
    /// The number that is next to be handed on.
    next: Option<u64>,
    /// Datagrams that were handed on, for the repair of others; the newest last.
    kept: VecDeque<(u64, Vec<u8>)>,
    /// Datagrams after a gap, in the order of their numbers.
    held: VecDeque<(u64, Vec<u8>)>,
    held_since_us: u64,
    ready: VecDeque<Vec<u8>>,
    repaired: u64,
}

impl Repairer {
    /// Returns whether datagrams have to pass through [`Repairer::handle`]; otherwise [`Repairer::note`] is enough.
    pub fn is_active(&self, now_us: u64) -> bool {
        now_us < self.active_until_us || !self.held.is_empty() || !self.ready.is_empty()
    }

    /// Notes a datagram that is handed on by the caller.
    pub fn note(&mut self, datagram: &[u8]) {
        // No parity comes any more: what was kept for it is of no use.
        self.kept = VecDeque::new();
        self.next = None;
        if let Some(number) = number_of(datagram) {
            self.arrivals.note(number);
        }
    }

    /// Takes in a datagram or its parity; what may be handed on comes out of [`Repairer::poll_datagram`].
    pub fn handle(&mut self, now_us: u64, datagram: &[u8]) {
        if datagram.first() == Some(&PARITY) {
            self.active_until_us = now_us + ACTIVE_US;
            return self.handle_parity(datagram);
        }
        let Some(number) = number_of(datagram) else {
            return self.ready.push_back(datagram.to_vec());
        };
        self.arrivals.note(number);
        self.place(now_us, number, datagram.to_vec());
    }

    /// Hands a datagram on, or holds it back behind a gap.
    fn place(&mut self, now_us: u64, number: u64, datagram: Vec<u8>) {
        let next = self.next.unwrap_or(number);
        if number < next || number - next > KEPT_MAX as u64 {
            // Late, or far away: nothing of it waits for a repair.
            if number > next {
                self.release_all();
                self.next = Some(number + 1);
            }
            return self.hand_on(number, datagram);
        }
        if number == next {
            self.next = Some(number + 1);
            self.hand_on(number, datagram);
            return self.release_ready();
        }
        self.next = Some(next);
        if self.held.is_empty() {
            self.held_since_us = now_us;
        }
        let place = self.held.partition_point(|(held, _)| *held < number);
        if self.held.get(place).is_none_or(|(held, _)| *held != number) {
            self.held.insert(place, (number, datagram));
        }
        if self.held.len() > KEPT_MAX {
            self.release_first_gap();
        }
    }

    fn hand_on(&mut self, number: u64, datagram: Vec<u8>) {
        if self.kept.len() >= KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((number, datagram.clone()));
        self.ready.push_back(datagram);
    }

    /// Hands on what follows without a gap.
    fn release_ready(&mut self) {
        while let Some((number, _)) = self.held.front()
            && Some(*number) == self.next
            && let Some((number, datagram)) = self.held.pop_front()
        {
            self.next = Some(number + 1);
            self.hand_on(number, datagram);
        }
    }

    /// Gives the first gap up.
    fn release_first_gap(&mut self) {
        if let Some((number, _)) = self.held.front() {
            self.next = Some(*number);
            self.release_ready();
        }
    }

    fn release_all(&mut self) {
        while !self.held.is_empty() {
            self.release_first_gap();
        }
    }

    fn find(&self, number: u64) -> Option<&[u8]> {
        let among = |datagrams: &'_ VecDeque<(u64, Vec<u8>)>| datagrams.iter().position(|(known, _)| *known == number);
        match (among(&self.held), among(&self.kept)) {
            (Some(place), _) => Some(&self.held[place].1),
            (None, Some(place)) => Some(&self.kept[place].1),
            (None, None) => None,
        }
    }

    fn handle_parity(&mut self, parity: &[u8]) {
        if parity.len() < PARITY_HEADER_LEN || parity.len() > PARITY_HEADER_LEN + DATAGRAM_LEN_MAX {
            return;
        }
        let count = u64::from(parity[1]);
        let first = u64::from_be_bytes(parity[2..10].try_into().expect("eight bytes"));
        let mut length = u16::from_be_bytes([parity[10], parity[11]]);
        if !(1..=GROUP_MAX).contains(&count) || first.checked_add(count).is_none() {
            return;
        }
        // The parity of what came before has come, or is lost.
        self.give_up_before(first);
        let mut sum = parity[PARITY_HEADER_LEN..].to_vec();
        let mut missing = None;
        for number in first..first + count {
            match self.find(number) {
                Some(datagram) => {
                    length ^= datagram.len() as u16;
                    add(&mut sum, datagram);
                }
                None if missing.is_none() => missing = Some(number),
                // Two are missing: nothing can be repaired, and nothing waits for it.
                None => return self.give_up_before(first + count),
            }
        }
        let Some(number) = missing else {
            return;
        };
        sum.truncate(usize::from(length));
        // What was handed on before it could be kept is not missing. The rest only DTLS can judge.
        if number_of(&sum) == Some(number) && self.next.is_some_and(|next| number >= next) {
            self.repaired += 1;
            self.place(0, number, sum);
        }
    }

    /// Waits no longer for anything below a number.
    fn give_up_before(&mut self, end: u64) {
        while self.held.front().is_some_and(|(number, _)| *number < end) {
            self.release_first_gap();
        }
        self.next = self.next.map(|next| next.max(end));
        self.release_ready();
    }

    /// Returns the next datagram to hand on.
    pub fn poll_datagram(&mut self, now_us: u64) -> Option<Vec<u8>> {
        if !self.held.is_empty() && now_us >= self.held_since_us + HOLD_US {
            self.release_all();
        }
        self.ready.pop_front()
    }

    /// Returns the next report to send to the peer.
    pub fn poll_report(&mut self, now_us: u64) -> Option<Vec<u8>> {
        let lost = self.arrivals.lost_singly;
        let pause = if lost > 0 { REPORT_US } else { ALL_WELL_US };
        let due = now_us >= self.reported_us + pause && (lost > 0 || self.is_active(now_us));
        if !due || self.arrivals.received == 0 {
            return None;
        }
        let received = std::mem::take(&mut self.arrivals.received);
        self.arrivals.lost_singly = 0;
        self.reported_us = now_us;
        let mut report = vec![REPORT];
        report.extend_from_slice(&received.to_be_bytes());
        report.extend_from_slice(&lost.to_be_bytes());
        Some(report)
    }

    /// Returns when [`Repairer::poll_datagram`] has something, if nothing else happens.
    pub fn poll_timeout_us(&self) -> Option<u64> {
        match self.ready.is_empty() {
            false => Some(0),
            true => (!self.held.is_empty()).then_some(self.held_since_us + HOLD_US),
        }
    }

    /// Returns how many datagrams were repaired.
    pub fn repaired(&self) -> u64 {
        self.repaired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(number: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![APPLICATION_DATA, 0xfe, 0xfd];
        bytes.extend_from_slice(&((1 << 48) + number).to_be_bytes());
        bytes.extend((0..len + 2).map(|at| (at as u64 * 31 + number * 7) as u8));
        bytes
    }

    fn report(received: u32, lost: u32) -> Vec<u8> {
        [&[REPORT][..], &received.to_be_bytes(), &lost.to_be_bytes()].concat()
    }

    /// A sender that has heard of one percent of loss.
    fn protector() -> Protector {
        let mut protector = Protector::default();
        protector.handle_report(&report(990, 10));
        protector
    }

    fn poll(repairer: &mut Repairer, now_us: u64) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| repairer.poll_datagram(now_us)).collect()
    }

    #[test]
    fn nothing_is_added_while_nothing_is_lost() {
        let mut protector = Protector::default();
        for number in 0..100 {
            protector.sent(0, &datagram(number, 1_000));
        }
        protector.handle_report(&report(100_000, 3));
        protector.sent(0, &datagram(100, 1_000));
        assert_eq!((protector.poll_parity(u64::MAX), protector.poll_timeout_us()), (None, None));
    }

    #[test]
    fn any_single_loss_of_a_group_is_repaired_in_its_place() {
        for lost in 0..8u64 {
            let (mut protector, mut repairer) = (protector(), Repairer::default());
            // It must know of parity before it holds anything back.
            repairer.handle(0, &[PARITY]);
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            for number in 0..16 {
                let bytes = datagram(number, 100 + 77 * (number as usize % 5));
                protector.sent(number, &bytes);
                if number != lost + 4 {
                    repairer.handle(number, &bytes);
                }
                while let Some(parity) = protector.poll_parity(number) {
                    repairer.handle(number, &parity);
                }
                received.extend(poll(&mut repairer, number));
                sent.push(bytes);
            }
            assert_eq!((received, repairer.repaired()), (sent, 1), "{lost}");
        }
    }

    #[test]
    fn a_repaired_datagram_has_its_own_length_when_it_was_the_longest_or_the_shortest() {
        for (lost, lens) in [(1, [50, 1_200, 60, 70]), (2, [900, 800, 0, 1_000])] {
            let (mut protector, mut repairer) = (protector(), Repairer::default());
            repairer.handle(0, &[PARITY]);
            let all: Vec<Vec<u8>> = (0..4).map(|number| datagram(number as u64, lens[number])).collect();
            for (number, bytes) in all.iter().enumerate() {
                protector.sent(0, bytes);
                if number != lost {
                    repairer.handle(0, bytes);
                }
            }
            repairer.handle(0, &protector.poll_parity(0).unwrap());
            assert_eq!(poll(&mut repairer, 0), all);
        }
    }

    #[test]
    fn losses_in_a_row_are_handed_on_at_once_and_not_reported_as_single_ones() {
        let (mut protector, mut repairer) = (protector(), Repairer::default());
        repairer.handle(0, &[PARITY]);
        let mut handed_on = 0;
        for number in 0..1_000 {
            let bytes = datagram(number, 100);
            protector.sent(0, &bytes);
            if number % 100 != 50 && number % 100 != 51 {
                repairer.handle(0, &bytes);
            }
            while let Some(parity) = protector.poll_parity(0) {
                repairer.handle(0, &parity);
            }
            handed_on += poll(&mut repairer, 0).len();
        }
        assert_eq!((handed_on, repairer.repaired()), (980, 0));
        let report = repairer.poll_report(REPORT_US * 20).unwrap();
        assert_eq!(report[5..9], [0; 4]);
    }

    #[test]
    fn what_no_parity_repairs_is_held_back_for_a_moment_only() {
        let mut repairer = Repairer::default();
        repairer.handle(0, &[PARITY]);
        for number in [0, 2, 3] {
            repairer.handle(1_000, &datagram(number, 10));
        }
        assert_eq!(poll(&mut repairer, 1_000).len(), 1);
        assert_eq!(repairer.poll_timeout_us(), Some(1_000 + HOLD_US));
        assert_eq!(poll(&mut repairer, 1_000 + HOLD_US), [datagram(2, 10), datagram(3, 10)]);
        // Reordering alone costs nothing.
        for number in [5, 4, 6] {
            repairer.handle(30_000, &datagram(number, 10));
        }
        assert_eq!(poll(&mut repairer, 30_000), [datagram(4, 10), datagram(5, 10), datagram(6, 10)]);
        // What comes late is handed on, too: whether it is a repetition DTLS knows.
        repairer.handle(30_000, &datagram(1, 10));
        assert_eq!(poll(&mut repairer, 30_000), [datagram(1, 10)]);
    }

    #[test]
    fn single_losses_are_counted_and_late_datagrams_are_not() {
        let mut repairer = Repairer::default();
        for number in 0..1_000 {
            let number = match number {
                // Two change places, and each tenth of the hundreds is lost.
                300 => 301,
                301 => 300,
                lost if lost % 100 == 10 => continue,
                number => number,
            };
            repairer.note(&datagram(number, 10));
        }
        let report = repairer.poll_report(REPORT_US).unwrap();
        assert_eq!(report, super::tests::report(990, 9), "the last ones are still in memory");
        let mut protector = Protector::default();
        protector.handle_report(&report);
        assert_eq!(protector.group_len(), Some(GROUP_MIN));
    }

    #[test]
    fn parity_of_the_last_datagrams_leaves_after_a_moment_and_ends_with_the_losses() {
        let mut protector = protector();
        protector.sent(7, &datagram(0, 10));
        assert_eq!((protector.poll_parity(7), protector.poll_timeout_us()), (None, Some(7 + GROUP_WAIT_US)));
        let parity = protector.poll_parity(7 + GROUP_WAIT_US).unwrap();
        assert_eq!(parity[1], 1);
        for _ in 0..50 {
            protector.handle_report(&report(2_000, 0));
        }
        protector.sent(9_000_000, &datagram(1, 10));
        assert_eq!(protector.poll_timeout_us(), None);
    }

    #[test]
    fn strangers_bytes_do_no_harm_and_grow_nothing() {
        let mut repairer = Repairer::default();
        let mut protector = Protector::default();
        let mut random = 1u64;
        for turn in 0..20_000u64 {
            let mut bytes: Vec<u8> = (0..turn % 61)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (random >> 56) as u8
                })
                .collect();
            if let Some(first) = bytes.first_mut() {
                *first = [PARITY, REPORT, APPLICATION_DATA, *first][turn as usize % 4];
            }
            if turn % 8 == 2 && bytes.len() > 11 {
                bytes[1..11].copy_from_slice(&[0xfe, 0xfd, 0, 1, 0, 0, 0, 0, (turn >> 8) as u8, turn as u8]);
            }
            repairer.handle(turn, &bytes);
            protector.handle_report(&bytes);
            protector.sent(turn, &bytes);
            let _ = (poll(&mut repairer, turn), repairer.poll_report(turn), protector.poll_parity(turn));
            assert!(repairer.held.len() <= KEPT_MAX && repairer.kept.len() <= KEPT_MAX);
        }
        assert_eq!(poll(&mut repairer, u64::MAX).len() + repairer.held.len(), repairer.ready.len());
    }
}
