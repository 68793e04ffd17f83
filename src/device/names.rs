//! Names for programs that ask the domain name system: members' names and addresses, and nothing else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use simple_dns::rdata::{A, AAAA, PTR, RData};
use simple_dns::{CLASS, Name, OPCODE, Packet, PacketFlag, QTYPE, Question, RCODE, ResourceRecord, TYPE};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

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
        let packet = Packet::parse(message).ok()?;
        if packet.has_flags(PacketFlag::RESPONSE) {
            return None;
        }
        let mut reply = Packet::new_reply(packet.id());
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
            let member = self.resolve(&address.to_string()).await.map_err(|error| absent(&error))?;
            let name = member.name.ok_or(RCODE::NameError)?;
            let name = Name::new(&name).map_err(|_| RCODE::ServerFailure)?.into_owned();
            return Ok(vec![record(RData::PTR(PTR(name)))]);
        }
        if name.is_empty() {
            return Err(RCODE::NameError);
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
