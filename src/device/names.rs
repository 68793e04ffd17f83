//! Names for programs that ask the domain name system: members' names and addresses, and nothing else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, OPT, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use unisockets_signaling::network::parse_name;
use unisockets_signaling::protocol::Query;

use crate::handle::Node;

/// Questions that are looked up at one time; more are dropped, and asked again by who wants to know.
const QUESTIONS_MAX: usize = 256;
/// Connections that ask, at one time.
const STREAMS_MAX: usize = 64;
/// How long a connection may be silent (RFC 7766, section 6.2.3).
const SILENCE: Duration = Duration::from_secs(10);
/// Longest message.
const MESSAGE_LEN_MAX: usize = 4_096;
/// How long an answer holds, in seconds: members come and go.
const TTL: u32 = 5;
/// The header of a message, and in its third byte: an answer; and what an answer takes over of a question, its kind and
/// whether recursion is wanted (RFC 1035, section 4.1.1).
const HEADER_LEN: usize = 12;
const IS_RESPONSE: u8 = 0x80;
const KEPT: u8 = 0x79;
const FORMAT_ERROR: u8 = 1;
/// TXT, of which members have none.
const NONE_HAS: [u8; 2] = [0, 16];

impl Node {
    /// Answers questions for names and addresses of members (RFC 1035): A, AAAA, and PTR of both. It never ends.
    pub async fn serve_names(&self, udp: UdpSocket, tcp: TcpListener) {
        let (udp, places) = (Arc::new(udp), Arc::new(Semaphore::new(QUESTIONS_MAX)));
        let streams = Arc::new(Semaphore::new(STREAMS_MAX));
        let mut message = vec![0; MESSAGE_LEN_MAX];
        loop {
            tokio::select! {
                received = udp.recv_from(&mut message) => {
                    let (len, from) = match received {
                        Ok(received) => received,
                        // An answer that nobody wanted any more comes back as an error of the socket.
                        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
                        Err(error) => {
                            pause(&error).await;
                            continue;
                        }
                    };
                    let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                        continue;
                    };
                    let (node, udp, question) = (self.clone(), Arc::clone(&udp), message[..len].to_vec());
                    tokio::spawn(async move {
                        if let Some(answer) = node.answer(&question).await {
                            let _ = udp.send_to(&answer, from).await;
                        }
                        drop(place);
                    });
                }
                accepted = tcp.accept() => {
                    let stream = match accepted {
                        Ok((stream, _)) => stream,
                        Err(error) => {
                            pause(&error).await;
                            continue;
                        }
                    };
                    let Ok(place) = Arc::clone(&streams).try_acquire_owned() else {
                        continue;
                    };
                    let node = self.clone();
                    tokio::spawn(async move {
                        let _ = node.answer_stream(stream).await;
                        drop(place);
                    });
                }
            }
        }
    }

    async fn answer_stream(&self, mut stream: TcpStream) -> io::Result<()> {
        loop {
            let question = timeout(SILENCE, async {
                let mut question = vec![0; usize::from(stream.read_u16().await?)];
                stream.read_exact(&mut question).await?;
                io::Result::Ok(question)
            });
            let question = question.await??;
            let Some(answer) = self.answer(&question).await else {
                return Ok(());
            };
            stream.write_u16(u16::try_from(answer.len()).unwrap_or(0)).await?;
            stream.write_all(&answer).await?;
        }
    }

    /// Returns the answer to a message, if it is a question.
    async fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        if let Ok(packet) = Packet::parse(message) {
            return self.reply(&packet).await;
        }
        let header: &[u8; HEADER_LEN] = message.first_chunk()?;
        if header[2] & IS_RESPONSE != 0 {
            return None;
        }
        // A type that is not known is one that no member has a record of (RFC 3597, section 3; RFC 8906, section 3.1.4).
        if let Some(at) = type_at(message) {
            let mut known = message.to_vec();
            known[at..at + 2].copy_from_slice(&NONE_HAS);
            if let Ok(packet) = Packet::parse(&known) {
                let mut reply = self.reply(&packet).await?;
                reply.get_mut(at..at + 2)?.copy_from_slice(&message[at..at + 2]);
                return Some(reply);
            }
        }
        let mut reply = vec![0; HEADER_LEN];
        reply[..2].copy_from_slice(&header[..2]);
        reply[2] = header[2] & KEPT | IS_RESPONSE;
        reply[3] = FORMAT_ERROR;
        Some(reply)
    }

    async fn reply(&self, packet: &Packet<'_>) -> Option<Vec<u8>> {
        if packet.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        let mut reply = Packet::new_reply(packet.id());
        if packet.opt().is_some() {
            // RFC 6891, section 6.1.1.
            *reply.opt_mut() = Some(OPT { opt_codes: Vec::new(), udp_packet_size: MESSAGE_LEN_MAX as u16, version: 0 });
        }
        reply.set_flags(PacketFlag::RECURSION_AVAILABLE | PacketFlag::AUTHORITATIVE_ANSWER);
        if packet.has_flags(PacketFlag::RECURSION_DESIRED) {
            reply.set_flags(PacketFlag::RECURSION_DESIRED);
        }
        let [question] = packet.questions.as_slice() else {
            *reply.rcode_mut() = RCODE::FormatError;
            return reply.build_bytes_vec().ok();
        };
        if packet.opcode() != OPCODE::StandardQuery {
            *reply.rcode_mut() = RCODE::NotImplemented;
        } else {
            match self.records(question).await {
                Ok(records) => reply.answers = records,
                Err(code) => *reply.rcode_mut() = code,
            }
        }
        reply.questions.push(question.clone());
        reply.build_bytes_vec().ok()
    }

    async fn records<'a>(&self, question: &Question<'a>) -> Result<Vec<ResourceRecord<'a>>, RCODE> {
        let name = question.qname.to_string();
        let record = |data: RData<'a>| ResourceRecord::new(question.qname.clone(), CLASS::IN, TTL, data);
        if let Some(address) = reverse(&name) {
            if !self.is_in_network(address) {
                return Err(RCODE::NameError);
            }
            let member = self.resolve(&address.to_string()).await.map_err(|error| absent(&error))?;
            let name = member.name.ok_or(RCODE::NameError)?;
            let name = Name::new(&name).map_err(|_| RCODE::ServerFailure)?.into_owned();
            let is_asked = matches!(question.qtype, QTYPE::TYPE(TYPE::PTR) | QTYPE::ANY);
            return Ok(Vec::from_iter(is_asked.then(|| record(RData::PTR(PTR(name))))));
        }
        // What can be no member's name is not the signaling server's business.
        match Query::parse(&name, self.network()) {
            Query::Key(_) => {}
            Query::Name(name) if parse_name(&name).is_ok() => {}
            _ => return Err(RCODE::NameError),
        }
        let member = self.resolve(&name).await.map_err(|error| absent(&error))?;
        let v4 = || record(RData::A(A { address: u32::from(member.ipv4) }));
        let v6 = || record(RData::AAAA(AAAA { address: u128::from(member.ipv6) }));
        Ok(match question.qtype {
            QTYPE::TYPE(TYPE::A) => vec![v4()],
            QTYPE::TYPE(TYPE::AAAA) => vec![v6()],
            QTYPE::ANY => vec![v4(), v6()],
            _ => Vec::new(),
        })
    }
}

/// Why nobody was found: nobody is there, or the server that knows cannot be reached and may be asked again.
fn absent(error: &io::Error) -> RCODE {
    if error.kind() == io::ErrorKind::NotFound { RCODE::NameError } else { RCODE::ServerFailure }
}

/// What cannot be had now, such as a descriptor, may be had soon.
async fn pause(error: &io::Error) {
    tracing::debug!(%error, "a question for a name was not taken");
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Returns where the type of the first question is.
fn type_at(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    loop {
        match usize::from(*message.get(at)?) {
            0 => return (message.len() >= at + 5).then_some(at + 1),
            len @ 1..=63 => at += 1 + len,
            // Nothing is there yet that a first name could point to.
            _ => return None,
        }
    }
}

/// Reads a name of the reverse trees (RFC 1035, section 3.5; RFC 3596, section 2.5).
fn reverse(name: &str) -> Option<IpAddr> {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    if let Some(v4) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = v4.split('.').map(|octet| octet.parse::<u8>().ok());
        let mut next = || octets.next().flatten();
        let (d, c, b, a) = (next()?, next()?, next()?, next()?);
        return octets.next().is_none().then_some(IpAddr::V4(Ipv4Addr::new(a, b, c, d)));
    }
    let v6 = name.strip_suffix(".ip6.arpa")?;
    let digits: Option<Vec<u128>> =
        v6.split('.').map(|digit| (digit.len() == 1).then(|| u128::from_str_radix(digit, 16).ok()).flatten()).collect();
    let digits = digits.filter(|digits| digits.len() == 32)?;
    let address = digits.iter().rev().fold(0, |address, digit| address << 4 | digit);
    Some(IpAddr::V6(Ipv6Addr::from(address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_the_reverse_trees_are_read() {
        assert_eq!(reverse("1.0.80.10.in-addr.arpa"), Some("10.80.0.1".parse().unwrap()));
        let v6 = "b.a.9.8.7.6.5.0.4.0.0.0.3.0.0.0.2.0.0.0.1.0.0.0.0.0.0.0.1.2.3.4.ip6.arpa.";
        assert_eq!(reverse(v6), Some("4321:0:1:2:3:4:567:89ab".parse().unwrap()));
        for bad in ["alpha", "1.0.80.in-addr.arpa", "1.2.3.4.5.in-addr.arpa", "a.b.ip6.arpa", "ip6.arpa"] {
            assert_eq!(reverse(bad), None, "{bad}");
        }
    }
}
