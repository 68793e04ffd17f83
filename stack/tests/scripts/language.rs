//! The language of the packet scripts: one line, one event.
//!
//! A script begins with its heading, `#` begins a comment anywhere:
//!
//! ```text
//! section  RFC 9293, 3.10.7.4      # the file's name begins with it
//! rule     What the section says, in one sentence.
//! level    MUST                    # MUST, SHOULD, MAY, or ours for a choice that no RFC makes
//! family   both                    # v4, v6 or both; both when the line is missing
//! mtu      1500                    # of the path, in bytes
//! peer-isn 4294967290              # the peer's initial sequence number
//! near-wrap 70000                  # seeds are tried until our initial number is that near to the wrap
//! ```
//!
//! Every following line may begin with `+TIME` or `+TIME..TIME`: so long after the line before. A packet of
//! ours that no line expects is an error; so is one that comes more than a millisecond too early or too late.
//! Sequence numbers count from the initial ones of each side, so a SYN has 0 and the first byte 1. Every byte of
//! a stream is a function of its number, and the runner compares all of them in both directions.
//!
//! ```text
//! < SYN ACK seq 0 ack 1 mss 1460    # the peer sends: flags, then fields in any order
//! > ACK seq 1 ack 1                 # we send: fields that are not named are not compared
//! < ACK seq 1 ack 1 len 100 @2      # of the peer's second port
//! < ICMP too-big seq 1 len 1460 mtu 1300   # an error about our segment with that number and length
//! nothing 500ms                     # nothing leaves for so long
//! ignore 10s                        # whatever leaves for so long
//! path mtu 1280                     # the path comes up again with another MTU
//! c: socket                         # the program calls; `= RESULT` compares what it gives
//! c: connect = InProgress
//! l: accept as d                    # names the accepted socket
//! c: send 100 = 100
//! c: pump 200000                    # sends so much, with a peer that acknowledges all of it
//! c: pump-to-wrap 1500              # the same until so much is left before our numbers wrap; that counts as 1
//! c: state ESTABLISHED
//! c: ready readable writable        # exactly these
//! connections 0                     # of the whole stack
//! time-wait 1
//! ```
//!
//! Two lines stand for the whole opening of a connection; further words are fields of the peer's SYN:
//!
//! ```text
//! passive c mss 1460                # listen as l, handshake, accept as c
//! active c mss 1460                 # connect as c, handshake
//! ```
//!
//! Where we differ from the rule, the script says both; its head must fail and its tail must hold, so a
//! deviation that goes away is noticed:
//!
//! ```text
//! deviation why, in one line
//! rfc
//! > ACK seq 1 ack 1
//! ours
//! nothing 1s
//! end
//! ```

use std::time::Duration;

/// Flags in the order of their bits, from FIN on.
pub const FLAGS: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

/// What is wrong with a line of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub line: usize,
    pub what: String,
}

/// Which address families a script runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Families {
    V4,
    V6,
    Both,
}

#[derive(Debug, Clone)]
pub struct Script {
    pub section: String,
    pub rule: String,
    pub level: String,
    pub families: Families,
    pub mtu: usize,
    pub peer_isn: u32,
    pub near_wrap: Option<u32>,
    pub lines: Vec<Line>,
    pub deviation: Option<Deviation>,
}

/// Where a script departs from its rule.
#[derive(Debug, Clone)]
pub struct Deviation {
    pub why: String,
    /// How many lines come before it.
    pub at: usize,
    pub rfc: Vec<Line>,
    pub ours: Vec<Line>,
}

#[derive(Debug, Clone)]
pub struct Line {
    pub number: usize,
    pub text: String,
    /// How long after the line before: at least and at most.
    pub after: (Duration, Duration),
    pub event: Event,
}

#[derive(Debug, Clone)]
pub enum Event {
    Inject(Segment),
    Icmp(Icmp),
    Expect(Segment),
    Nothing(Duration),
    Ignore(Duration),
    PathMtu(usize),
    Call { name: String, call: Call, result: Option<String> },
    Connections(usize),
    TimeWait(usize),
}

/// A segment as a line names it; what it leaves out is a default for the peer's and not compared for ours.
#[derive(Debug, Clone, Default)]
pub struct Segment {
    pub port: usize,
    pub flags: u8,
    pub seq: u32,
    pub ack: Option<u32>,
    pub len: usize,
    pub window: Option<u16>,
    pub window_at_least: Option<u16>,
    pub window_at_most: Option<u16>,
    pub mss: Option<u16>,
    pub wscale: Option<u8>,
    pub sack_permitted: bool,
    pub sack: Vec<(u32, u32)>,
    pub timestamp: Option<(u32, u32)>,
    pub urgent: Option<u16>,
    pub hop_limit: Option<u8>,
    /// Bytes of options as they are, padded to a whole word with ends of the list.
    pub raw_options: Vec<u8>,
    pub data_offset: Option<u8>,
    /// Option names that must be absent.
    pub without: Vec<String>,
    pub bad_checksum: bool,
    pub bad_ip_checksum: bool,
    /// The peer's source address, where it is not its own.
    pub from: Option<String>,
    /// Why the stack must drop it.
    pub dropped: Option<String>,
    /// A SYN of ours that begins a new life of the connection.
    pub fresh: bool,
}

#[derive(Debug, Clone, Default)]
pub struct Icmp {
    pub port: usize,
    pub kind: String,
    /// The number of our segment that it quotes, and how many bytes that had.
    pub seq: u32,
    pub len: usize,
    pub mtu: u16,
}

#[derive(Debug, Clone)]
pub enum Call {
    Socket,
    Bind(u16),
    Listen(usize),
    /// To the peer's port of that number.
    Connect(usize),
    Accept(Option<String>),
    Send(usize),
    Recv(usize),
    Peek(usize),
    Pump(usize),
    PumpToWrap(u32),
    Shutdown(String),
    Close,
    Set(String, String),
    State(String),
    Ready(Vec<String>),
    TakeError,
}

/// The words of a line.
struct Words<'a> {
    line: usize,
    words: std::iter::Peekable<std::str::SplitWhitespace<'a>>,
}

impl<'a> Words<'a> {
    fn mistake<T>(&self, what: impl Into<String>) -> Result<T, Mistake> {
        Err(Mistake { line: self.line, what: what.into() })
    }

    fn word(&mut self, meant: &str) -> Result<&'a str, Mistake> {
        match self.words.next() {
            Some(word) => Ok(word),
            None => self.mistake(format!("here {meant} is missing")),
        }
    }

    fn number<N: std::str::FromStr>(&mut self, meant: &str) -> Result<N, Mistake> {
        let word = self.word(meant)?;
        match word.parse() {
            Ok(number) => Ok(number),
            Err(_) => self.mistake(format!("{word} is not {meant}")),
        }
    }

    fn duration(&mut self) -> Result<Duration, Mistake> {
        let word = self.word("a time")?;
        match duration(word) {
            Some(duration) => Ok(duration),
            None => self.mistake(format!("{word} is not a time: say 5s, 20ms or 50us")),
        }
    }

    fn rest(&mut self) -> Vec<String> {
        self.words.by_ref().map(str::to_owned).collect()
    }

    fn end(&mut self) -> Result<(), Mistake> {
        match self.words.next() {
            Some(word) => self.mistake(format!("unknown word {word}")),
            None => Ok(()),
        }
    }
}

/// Reads a time; a fraction is allowed for seconds and milliseconds.
pub fn duration(word: &str) -> Option<Duration> {
    let at = word.find(|c: char| c.is_ascii_alphabetic())?;
    let micros: f64 = match &word[at..] {
        "s" => 1e6,
        "ms" => 1e3,
        "us" => 1.0,
        _ => return None,
    };
    let value: f64 = word[..at].parse().ok()?;
    (value >= 0.0).then(|| Duration::from_micros((value * micros).round() as u64))
}

/// Reads a script.
pub fn parse(text: &str) -> Result<Script, Mistake> {
    let mut script = Script {
        section: String::new(),
        rule: String::new(),
        level: String::new(),
        families: Families::Both,
        mtu: 1_500,
        peer_isn: 1_000_000,
        near_wrap: None,
        lines: Vec::new(),
        deviation: None,
    };
    /// Which part of a script a line belongs to.
    #[derive(Clone, Copy, PartialEq)]
    enum Part {
        Body,
        Why,
        Rfc,
        Ours,
    }
    let mut part = Part::Body;
    for (index, raw) in text.lines().enumerate() {
        let number = index + 1;
        let line = raw.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let mistake = |what: &str| Err(Mistake { line: number, what: what.to_owned() });
        match (line, part) {
            ("rfc", Part::Why) => part = Part::Rfc,
            ("ours", Part::Rfc) => part = Part::Ours,
            ("end", Part::Ours) => part = Part::Body,
            ("rfc" | "ours" | "end", _) => return mistake("the order is: deviation, rfc, ours, end"),
            (_, Part::Why) => return mistake("a deviation begins with rfc"),
            _ if line.starts_with("deviation") => {
                if part != Part::Body || script.deviation.is_some() {
                    return mistake("a script has one deviation");
                }
                let why = line["deviation".len()..].trim().to_owned();
                if why.is_empty() {
                    return mistake("a deviation says why");
                }
                script.deviation = Some(Deviation { why, at: script.lines.len(), rfc: Vec::new(), ours: Vec::new() });
                part = Part::Why;
            }
            _ if part == Part::Body && heading(&mut script, number, line)? => {}
            _ => {
                for line in opening(line).unwrap_or_else(|| vec![line.to_owned()]) {
                    let event = event_line(number, &line)?;
                    match (part, &mut script.deviation) {
                        (Part::Rfc, Some(deviation)) => deviation.rfc.push(event),
                        (Part::Ours, Some(deviation)) => deviation.ours.push(event),
                        _ => script.lines.push(event),
                    }
                }
            }
        }
    }
    let last = text.lines().count();
    let lacks = |what: &str| Err(Mistake { line: last, what: what.to_owned() });
    if script.section.is_empty() || script.rule.is_empty() || script.level.is_empty() {
        return lacks("a script has a section, a rule and a level");
    }
    if part != Part::Body {
        return lacks("the deviation has no end");
    }
    if script.deviation.as_ref().is_some_and(|deviation| deviation.rfc.is_empty() || deviation.ours.is_empty()) {
        return lacks("a deviation says what the rule wants, and what we do");
    }
    if !script.lines.iter().any(|line| !matches!(line.event, Event::Call { .. })) {
        return lacks("a script without packets shows nothing");
    }
    Ok(script)
}

/// Writes out a line that stands for the opening of a connection.
fn opening(line: &str) -> Option<Vec<String>> {
    let (how, rest) = line.split_once(' ')?;
    let (name, fields) = rest.split_once(' ').unwrap_or((rest, ""));
    let lines = match how {
        "passive" => vec![
            "l: socket".to_owned(),
            "l: bind 80".to_owned(),
            "l: listen 8".to_owned(),
            format!("< SYN seq 0 {fields}"),
            "> SYN ACK seq 0 ack 1".to_owned(),
            "< ACK seq 1 ack 1".to_owned(),
            format!("l: accept as {name}"),
        ],
        "active" => vec![
            format!("{name}: socket"),
            format!("{name}: connect = InProgress"),
            "> SYN seq 0".to_owned(),
            format!("< SYN ACK seq 0 ack 1 {fields}"),
            "> ACK seq 1 ack 1".to_owned(),
        ],
        _ => return None,
    };
    Some(lines)
}

/// Reads a line of the heading; returns whether it was one.
fn heading(script: &mut Script, number: usize, line: &str) -> Result<bool, Mistake> {
    let (first, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    let mut words = Words { line: number, words: rest.split_whitespace().peekable() };
    match first {
        "section" => script.section = rest.trim().to_owned(),
        "rule" => script.rule = rest.trim().to_owned(),
        "level" => {
            if !matches!(rest.trim(), "MUST" | "SHOULD" | "MAY" | "ours") {
                return words.mistake("a level is MUST, SHOULD, MAY or ours");
            }
            script.level = rest.trim().to_owned();
        }
        "family" => {
            script.families = match rest.trim() {
                "v4" => Families::V4,
                "v6" => Families::V6,
                "both" => Families::Both,
                other => return words.mistake(format!("{other} is no family")),
            }
        }
        "mtu" => script.mtu = words.number("a number of bytes")?,
        "peer-isn" => script.peer_isn = words.number("a sequence number")?,
        "near-wrap" => script.near_wrap = Some(words.number("a number of bytes")?),
        _ => return Ok(false),
    }
    if !script.lines.is_empty() {
        return words.mistake("the heading comes before the first event");
    }
    if matches!(first, "mtu" | "peer-isn" | "near-wrap") {
        words.end()?;
    }
    Ok(true)
}

fn event_line(number: usize, text: &str) -> Result<Line, Mistake> {
    let mut words = Words { line: number, words: text.split_whitespace().peekable() };
    let mut after = (Duration::ZERO, Duration::ZERO);
    if let Some(time) = words.words.peek().and_then(|word| word.strip_prefix('+')) {
        words.words.next();
        let (least, most) = time.split_once("..").unwrap_or((time, time));
        match (duration(least), duration(most)) {
            (Some(least), Some(most)) if least <= most => after = (least, most),
            _ => return words.mistake(format!("+{time} is not a time: say +5s, +20ms or +1s..2s")),
        }
    }
    let event = match words.word("an event")? {
        "<" if words.words.peek() == Some(&"ICMP") => Event::Icmp(icmp(&mut words)?),
        "<" => Event::Inject(segment(&mut words, true)?),
        ">" => Event::Expect(segment(&mut words, false)?),
        "nothing" => Event::Nothing(words.duration()?),
        "ignore" => Event::Ignore(words.duration()?),
        "path" => match words.word("mtu")? {
            "mtu" => Event::PathMtu(words.number("a number of bytes")?),
            other => return words.mistake(format!("unknown word {other}")),
        },
        "connections" => Event::Connections(words.number("a number of connections")?),
        "time-wait" => Event::TimeWait(words.number("a number of connections")?),
        name => match name.strip_suffix(':') {
            Some(name) => call(&mut words, name)?,
            None => return words.mistake(format!("unknown word {name}")),
        },
    };
    if after.0 != after.1 && !matches!(event, Event::Expect(_)) {
        return words.mistake("only a packet of ours may come within a range of times");
    }
    words.end()?;
    Ok(Line { number, text: text.to_owned(), after, event })
}

fn port(words: &Words<'_>, word: &str) -> Result<usize, Mistake> {
    match word.strip_prefix('@').and_then(|port| port.parse().ok()) {
        Some(port @ 1..=99) => Ok(port),
        _ => words.mistake(format!("unknown word {word}")),
    }
}

fn icmp(words: &mut Words<'_>) -> Result<Icmp, Mistake> {
    words.word("ICMP")?;
    let kind = words.word("a kind of error")?.to_owned();
    let known = ["net-unreachable", "host-unreachable", "protocol-unreachable", "port-unreachable"];
    let known_too = ["prohibited", "too-big", "time-exceeded", "parameter-problem", "source-quench"];
    if !known.contains(&kind.as_str()) && !known_too.contains(&kind.as_str()) {
        return words.mistake(format!("{kind} is no kind of ICMP error"));
    }
    let mut icmp = Icmp { port: 1, kind, ..Icmp::default() };
    while let Some(word) = words.words.next() {
        match word {
            "seq" => icmp.seq = words.number("a sequence number")?,
            "len" => icmp.len = words.number("a number of bytes")?,
            "mtu" => icmp.mtu = words.number("a number of bytes")?,
            _ => icmp.port = port(words, word)?,
        }
    }
    Ok(icmp)
}

fn segment(words: &mut Words<'_>, injected: bool) -> Result<Segment, Mistake> {
    let mut segment = Segment { port: 1, ..Segment::default() };
    while let Some(bit) = words.words.peek().and_then(|word| FLAGS.iter().position(|flag| flag == word)) {
        words.words.next();
        segment.flags |= 1 << bit;
    }
    if words.words.peek() == Some(&"none") {
        words.words.next();
    } else if segment.flags == 0 {
        return words.mistake("a segment begins with its flags, or none");
    }
    let mut has_seq = false;
    while let Some(word) = words.words.next() {
        has_seq |= word == "seq";
        match word {
            "seq" => segment.seq = words.number("a sequence number")?,
            "ack" => segment.ack = Some(words.number("a sequence number")?),
            "len" => segment.len = words.number("a number of bytes")?,
            "window" => segment.window = Some(words.number("a window")?),
            "mss" => segment.mss = Some(words.number("a number of bytes")?),
            "wscale" => segment.wscale = Some(words.number("a shift")?),
            "sack-permitted" => segment.sack_permitted = true,
            "sack" => segment.sack.push((words.number("a sequence number")?, words.number("a sequence number")?)),
            "timestamp" => segment.timestamp = Some((words.number("a value")?, words.number("an echo")?)),
            "urgent" => segment.urgent = Some(words.number("an offset")?),
            "hop-limit" => segment.hop_limit = Some(words.number("a number of hops")?),
            "window-at-least" if !injected => segment.window_at_least = Some(words.number("a window")?),
            "window-at-most" if !injected => segment.window_at_most = Some(words.number("a window")?),
            "fresh" if !injected => segment.fresh = true,
            "without" if !injected => {
                let name = words.word("the name of an option")?;
                if !matches!(name, "mss" | "wscale" | "sack-permitted" | "sack" | "timestamp") {
                    return words.mistake(format!("{name} is no option"));
                }
                segment.without.push(name.to_owned());
            }
            "raw-options" if injected => segment.raw_options = hex(words)?,
            "data-offset" if injected => segment.data_offset = Some(words.number("a number of words")?),
            "bad-checksum" if injected => segment.bad_checksum = true,
            "bad-ip-checksum" if injected => segment.bad_ip_checksum = true,
            "from" if injected => segment.from = Some(words.word("an address")?.to_owned()),
            "dropped" if injected => segment.dropped = Some(words.word("a reason")?.to_owned()),
            _ => segment.port = port(words, word)?,
        }
    }
    if !has_seq {
        return words.mistake("a segment has a seq");
    }
    if (segment.flags & ACK != 0) != segment.ack.is_some() {
        return words.mistake("ACK and ack go together");
    }
    Ok(segment)
}

fn hex(words: &mut Words<'_>) -> Result<Vec<u8>, Mistake> {
    let word = words.word("bytes in hexadecimal")?;
    let byte = |at: usize| word.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
    let bytes: Option<Vec<u8>> = (0..word.len()).step_by(2).map(byte).collect();
    match bytes {
        Some(bytes) => Ok(bytes),
        None => words.mistake(format!("{word} is not hexadecimal")),
    }
}

fn call(words: &mut Words<'_>, name: &str) -> Result<Event, Mistake> {
    let call = match words.word("a call")? {
        "socket" => Call::Socket,
        "bind" => Call::Bind(words.number("a port")?),
        "listen" => Call::Listen(words.number("a backlog")?),
        "connect" => match words.words.next_if(|word| word.starts_with('@')) {
            Some(word) => Call::Connect(port(words, word)?),
            None => Call::Connect(1),
        },
        "accept" => match words.words.next_if_eq(&"as") {
            Some(_) => Call::Accept(Some(words.word("a name")?.to_owned())),
            None => Call::Accept(None),
        },
        "send" => Call::Send(words.number("a number of bytes")?),
        "recv" => Call::Recv(words.number("a number of bytes")?),
        "peek" => Call::Peek(words.number("a number of bytes")?),
        "pump" => Call::Pump(words.number("a number of bytes")?),
        "pump-to-wrap" => Call::PumpToWrap(words.number("a number of bytes")?),
        "shutdown" => match words.word("a direction")? {
            how @ ("read" | "write" | "both") => Call::Shutdown(how.to_owned()),
            how => return words.mistake(format!("{how} is no direction")),
        },
        "close" => Call::Close,
        "set" => Call::Set(words.word("an option")?.to_owned(), words.word("a value")?.to_owned()),
        "state" => Call::State(words.word("a state")?.to_owned()),
        "ready" => Call::Ready(words.rest()),
        "take-error" => Call::TakeError,
        other => return words.mistake(format!("unknown call {other}")),
    };
    let result = match words.words.next_if_eq(&"=") {
        Some(_) => Some(words.word("a result")?.to_owned()),
        None => None,
    };
    let tells = matches!(call, Call::Send(_) | Call::Recv(_) | Call::Peek(_) | Call::Connect(_) | Call::TakeError);
    if result.is_none() && (tells || matches!(call, Call::Accept(None))) {
        return words.mistake("the result of this call is what the script is about: add = RESULT");
    }
    Ok(Event::Call { name: name.to_owned(), call, result })
}
